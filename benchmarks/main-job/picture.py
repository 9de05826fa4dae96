"""Draw the picture of the README from a finished run of the main job.

python benchmarks/main-job/picture.py runs/main-job/NUAA-SIRST-seed0 --data ../shared/data/NUAA-SIRST
"""

import argparse
from pathlib import Path

from fewlabel.data.split import Split
from fewlabel.labels.store import LabelStore
from fewlabel.pipeline.collect import example
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.inputs import open_dataset
from fewlabel.pipeline.trained import load_student, run_recipe
from fewlabel.report.plots import hero
from fewlabel.scalpel.bank import OPERATOR_NAMES
from fewlabel.scalpel.teacher import load_teacher

PRIOR = 2  # the operator that is shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished run folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of its data set")
    parser.add_argument("--id", help="unlabelled image; by default the one in the middle of those with a pseudo-label")
    parser.add_argument("--out", type=Path, default=Path("docs/hero.png"))
    options = parser.parse_args()
    folder = RunFolder(options.run)
    store = LabelStore(folder.stage("label") / "labels")
    split = Split.load(folder.stage("split") / "split.json")
    found = [id for id in split.unlabelled if len(store.get(id).accepted)]
    chosen = options.id or found[len(found) // 2]
    teacher = load_teacher(folder.stage("teach"))
    student = load_student(run_recipe(folder), folder, "fewlabel")
    shown = example(chosen, open_dataset(options.data), store, teacher, student)
    hero(shown, options.out, prior=PRIOR, prior_name=OPERATOR_NAMES[PRIOR].replace("_", " "))
    print(f"{options.out}: {chosen}")


if __name__ == "__main__":
    main()
