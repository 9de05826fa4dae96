"""From a run folder and names of images to a page that shows what became of them; no stage, so nothing is redone."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from fewlabel.core.errors import DataError, RunError
from fewlabel.core.files import read_json
from fewlabel.data.dataset import Dataset
from fewlabel.data.split import Split
from fewlabel.labels.gate import GateConfig
from fewlabel.labels.store import LabelStore, PseudoLabel, target_and_weight
from fewlabel.pipeline.collect import METHOD_NOTE, prior_names, priors, said, teacher_folder
from fewlabel.pipeline.folder import MANIFEST, RunFolder
from fewlabel.pipeline.gates import image_gates
from fewlabel.pipeline.inputs import open_dataset
from fewlabel.pipeline.labelling import LABELS
from fewlabel.pipeline.proposals import because, missed, painted, true_overlaps
from fewlabel.pipeline.scoring import load_threshold
from fewlabel.pipeline.trained import load_student, run_recipe
from fewlabel.recipe import Recipe, of_method, parse_recipe
from fewlabel.report.contents import Example
from fewlabel.report.explained import ExplainedImage, Explanation, Proposal, write
from fewlabel.scalpel import transfer
from fewlabel.scalpel.bank import OperatorBank
from fewlabel.scalpel.evidence import contrasts, prior_map, supports
from fewlabel.scalpel.teacher import ScalpelTeacher, load_teacher
from fewlabel.students.detector.network import DETECTOR

NEAREST = 3  # names that are suggested in the place of an unknown one
OPEN_GATE = GateConfig(
    min_quality=0, max_spread=0.5, min_area=1, max_area_share=1, min_contrast=-np.inf, min_support=0
)  # accepts whatever is proposed
PARTS = {
    "train": "Labelled: its human label trained the teacher and the student",
    "validation": "Labelled and held back: nothing was trained on it",
    "unlabelled": "Unlabelled: the student was trained on its pseudo-label",
    "test": "A test image: nothing was trained or chosen on it",
}
LEFT_OUT = "Unlabelled: the teacher is sure of nothing in it, so it was left out of the student's training as a whole"


def explain(run: Path, ids: Sequence[str], out: Path) -> None:
    """Write a page on some images of a run: operators, gates, teacher, pseudo-label with its reasons, and student.

    Args:
        run: Run folder whose label stage is done; the student is shown once its train stage is done.
        ids: Names of images of the run's data set, from whichever part.
        out: The HTML file.

    Raises:
        RunError: `run` holds no finished label stage.
        DataError: An image does not exist, was rejected by the check, or cannot be read.
    """
    folder = RunFolder(run)
    manifest = folder.manifest("label")
    checked = folder.manifest("check")
    if checked is not None:
        recipe_of = parse_recipe(checked["recipe"], str(folder.stage("check") / MANIFEST))
        of_method(recipe_of, Recipe, "An explanation", "its report shows pseudo-labels and results")
    if manifest is None:
        raise RunError(
            f"{run} is no run folder whose label stage is done; give one made by `fewlabel run` or `fewlabel label`."
        )
    found = parse_recipe(manifest["recipe"], str(folder.stage("label") / MANIFEST))
    recipe = of_method(found, Recipe, "An explanation")
    rejected = {item["id"]: item["reason"] for item in read_json(folder.stage("check") / "check.json")["rejected"]}
    dataset = open_dataset(recipe.data, rejected)
    wanted = list(dict.fromkeys(ids))
    for id in wanted:
        check_id(id, dataset, rejected)
    teacher = load_teacher(teacher_folder(recipe, folder))
    explained = Explainer(recipe, folder, dataset, teacher)
    page = Explanation(
        title=recipe.name,
        data=dataset.name,
        sam=recipe.teacher.sam,
        threshold=explained.threshold,
        operators=prior_names(teacher),
        experts=teacher.adapter.expert_names if teacher.adapter is not None else (),
        images=[explained.image(id) for id in wanted],
        notes=(METHOD_NOTE,),
        boxes=recipe.student.network == DETECTOR,
    )
    write(page, out)


def check_id(id: str, dataset: Dataset, rejected: dict[str, str]) -> None:
    """Refuse a name that is no usable image of the data set, with the names nearest to it.

    Raises:
        DataError: It is not.
    """
    if id in rejected:
        raise DataError(f"Image {id!r} was rejected by the check: {rejected[id]}")
    known = (*dataset.train_ids, *dataset.test_ids)
    if id not in known:
        near = difflib.get_close_matches(id, known, n=NEAREST, cutoff=0.0)
        raise DataError(f"{dataset.name} has no image {id!r}; the nearest names are {', '.join(near)}.")


class Explainer:
    """A finished label stage, ready to be asked about images."""

    def __init__(self, recipe: Recipe, folder: RunFolder, dataset: Dataset, teacher: ScalpelTeacher) -> None:
        """Open what the stages wrote.

        Args:
            recipe: The run's recipe.
            folder: The run folder.
            dataset: The data set.
            teacher: The teacher that made the pseudo-labels.
        """
        self.recipe, self.dataset, self.teacher = recipe, dataset, teacher
        self.threshold = float(read_json(folder.stage("label") / "threshold.json")["threshold"])
        self.store = LabelStore(folder.stage("label") / LABELS)
        self.bank = OperatorBank(recipe.teacher.operators).eval()  # as it judged the proposals: untrained
        split = Split.load(folder.stage("split") / "split.json")
        self.parts = {id: part for part in PARTS for id in getattr(split, part)}
        self.student: nn.Module | None = None
        if folder.manifest("train") is not None:
            self.student = load_student(run_recipe(folder), folder, "fewlabel")
            self.box_threshold = load_threshold(self.student, folder, "fewlabel")

    def image(self, id: str) -> ExplainedImage:
        """All that was made of one image; of an image that was not pseudo-labelled, what its label would have been."""
        image = self.dataset.image(id).normalised()
        config = self.recipe.label
        view = transfer.predict(self.teacher, image, config.views, config.batch)
        trained = id in self.store
        label = self.store.get(id) if trained else self._label(id, image, view, config)
        truth = self.dataset.labelled(id).instances.semantic() if self.dataset.has_mask(id) else None
        target, weight = target_and_weight(label)
        example = Example(
            id=id,
            image=image,
            truth=truth,
            priors=priors(self.teacher, image),
            teacher=view.probability,
            target=target,
            weight=weight,
            **({} if self.student is None else said(self.student, image, self.box_threshold)),
        )
        labels = painted(label)
        seen = self._figures(id, image, view, labels, len(label.reasons))
        kinds = (
            ("accepted", len(label.accepted)),
            ("ignored", len(label.ignored) - 1),
            ("rejected", len(label.rejected)),
        )
        verdicts = [kind for kind, count in kinds for _ in range(count)]
        hits = true_overlaps(labels, len(verdicts), truth)
        proposals = [
            Proposal(verdict, reason, because(reason, figures, image.size, config.gate), figures, hit)
            for verdict, reason, figures, hit in zip(verdicts, label.reasons, seen, hits, strict=True)
        ]
        part = (
            LEFT_OUT
            if trained and label.unsure
            else PARTS.get(self.parts.get(id, ""), "Not part of this run: added to the data since")
        )
        gates = image_gates(self.teacher, image)
        return ExplainedImage(example, part, trained, proposals, labels, missed(labels, truth), gates)

    def _label(
        self, id: str, image: np.ndarray, view: transfer.TeacherView, config: transfer.PseudoConfig
    ) -> PseudoLabel:
        """The pseudo-label as the label stage makes it."""
        return transfer.pseudo_label(id, image, view, self.threshold, config, bank=self.bank)

    def _figures(
        self, id: str, image: np.ndarray, view: transfer.TeacherView, labels: np.ndarray, count: int
    ) -> list[dict[str, float]]:
        """What the gate looked at, for each of the proposals 1..count of `labels` `(H, W)`."""
        # The store keeps no quality of what was ignored, so a gate that accepts everything is asked for it.
        opened = self._label(id, image, view, self.recipe.label.model_copy(update={"gate": OPEN_GATE}))
        scores = np.append(opened.accepted.scores, np.nan)  # the last: pixels that are proposed no more
        places = painted(opened) - 1
        contrast = contrasts(image, labels, count)
        support = supports(prior_map(image, self.bank), labels, count)
        found = []
        for number in range(1, count + 1):
            inside = labels == number
            found.append(
                {
                    "quality": float(scores[np.bincount(places[inside] % len(scores)).argmax()]),
                    "spread": float(view.spread[inside].mean()),
                    "area": float(inside.sum()),
                    "contrast": float(contrast[number - 1]),
                    "support": float(support[number - 1]),
                }
            )
        return found
