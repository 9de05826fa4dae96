"""The first two stages, which all methods share: look at every file, then divide the images."""

from pathlib import Path
from typing import Any

from fewlabel.core.errors import DataError
from fewlabel.core.files import write_json
from fewlabel.data.check import CheckReport
from fewlabel.data.check import check as check_dataset
from fewlabel.data.dataset import Dataset
from fewlabel.data.duplicates import Duplicates, cluster_groups
from fewlabel.data.groups import dataset_groups, join_groups, pattern_groups
from fewlabel.data.joined import PREFIX
from fewlabel.data.split import make_split
from fewlabel.pipeline.inputs import open_dataset
from fewlabel.recipe import CommonRecipe, DataSection, SplitSection
from fewlabel.report import check_page


def check(data: DataSection, out: Path | None, *, keep_going: bool, fraction: float | None) -> CheckReport:
    """Decode everything once; writes check.json, check.html and rejected.csv.

    Args:
        data: Where the images are.
        out: Where to write; nothing is written when absent.
        keep_going: List unusable images as rejected instead of stopping.
        fraction: Labelled share that the split will take. With one, every training image has to have a mask, so that
            the share is drawn from all of them; with None, masks may be missing. Test images always need theirs.

    Raises:
        DataError: Something cannot be used, and `keep_going` is off.
    """
    dataset = open_dataset(data, strict=False)
    if dataset.boxes_only:
        print(
            "labels: boxes, which count as masks that fill them; a student of masks would learn rectangles, so train"
            " one of boxes (student.network=dfine), or draw masks"
        )
    required = dataset.test_ids if fraction is None else (*dataset.train_ids, *dataset.test_ids)
    rejected = None if out is None else out / "rejected.csv"
    report = check_dataset(dataset, keep_going=keep_going, require_masks=required, rejected_csv=rejected)
    if dataset.problems and not dataset.test_ids:
        print(
            f"warning: there is no test image, and {len(dataset.problems)} problems left images or lists out, so no"
            " student will be scored; see rejected.csv"
        )
    if out is not None:
        write_json(out / "check.json", report.to_json())
        check_page.write(report, dataset, out / "check.html")
    return report


def split(recipe: CommonRecipe, dataset: Dataset, checked: dict[str, Any], out: Path, *, every_label: str) -> None:
    """Choose labelled, validation and unlabelled images; writes split.json.

    Args:
        recipe: The run's recipe.
        dataset: The data set.
        checked: What the check stage wrote.
        out: Where to write.
        every_label: The recipe's key that asks for a method which needs a label of every training image; empty: none.

    Raises:
        DataError: The labelled share holds no target, or `all-labels` is to be compared but masks are missing: both
            would be found out only after hours.
    """
    section, areas, classes = recipe.split, checked["areas"], checked["classes_of"]
    made = make_split(
        dataset.train_ids,
        {id: areas[id] for id in dataset.train_ids if id in areas},
        fraction=section.fraction,
        count=section.count,
        seed=section.seed,
        validation_share=section.validation_share,
        test_ids=dataset.test_ids,
        classes={id: classes[id] for id in dataset.train_ids if id in classes},
        class_names=dataset.classes,
        groups=split_groups(section, dataset, checked),
    )
    if not any(areas[id] > 0 for id in made.train):
        raise DataError(
            f"None of the {len(made.train)} labelled images of {recipe.data.root} shows a target, so nothing can be"
            " learned; label some that do, or label more images."
        )
    missing = next((id for id in made.unlabelled if not dataset.has_mask(id)), None)
    if missing is not None and every_label:
        raise DataError(
            f"Image {missing!r} of {recipe.data.root} has no mask, so 'all-labels' cannot be trained; remove it from"
            f" {every_label}."
        )
    made.save(out / "split.json")


def split_groups(section: SplitSection, dataset: Dataset, checked: dict[str, Any]) -> dict[str, str] | None:
    """The groups of images that a split must not tear; None where every image is free."""
    groupings = []
    if section.groups == "layout":
        groupings.append(dataset_groups(dataset))
    elif section.groups is not None:
        # Further images are never labelled, so no split can tear them from others.
        own = [id for id in dataset.train_ids if not id.startswith(PREFIX)]
        groupings.append(pattern_groups(own, section.groups))
    if section.twins_together:
        groupings.append(cluster_groups(Duplicates.from_json(checked["duplicates"])))
    return join_groups(*groupings) if groupings else None
