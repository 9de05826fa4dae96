"""From the run folder of instance segmentation to the values that its report shows."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch

from fewlabel import __version__
from fewlabel.core import rle as codes
from fewlabel.core.files import read_json
from fewlabel.core.types import Instances
from fewlabel.data.dataset import Dataset
from fewlabel.data.instance_crops import padded
from fewlabel.data.split import Split
from fewlabel.data.views import View, colours
from fewlabel.metrics.instances import MaskQuality, mask_quality
from fewlabel.pipeline.collect import LIBRARIES, data_facts, spread, stage_times
from fewlabel.pipeline.folder import RunFolder
from fewlabel.pipeline.instance_scoring import load_network, method_folder
from fewlabel.pipeline.instance_stages import PLAIN_TEACHER, class_count, frozen_sam
from fewlabel.recipe import InstanceMethod, InstanceRecipe, dump_recipe
from fewlabel.report.contents import ScoreRow
from fewlabel.report.instances import InstanceReport
from fewlabel.report.objects import ObjectPanel, ObjectPicture
from fewlabel.s4m.batches import torch_generator
from fewlabel.s4m.network import STRIDE, InstanceSegmenter
from fewlabel.s4m.predict import find_objects
from fewlabel.s4m.pseudo import image_masks, pseudo_labels
from fewlabel.s4m.refine import refine
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.training.log import LOG, read_log

UNLABELLED_EXAMPLES, TEST_EXAMPLES = 4, 4
SIDE = 768  # pixels: of larger images the middle is shown, so that memory and page stay small
SURE = 0.5  # score from which a test image's object is drawn; AP counts those below as well
METHOD_NOTE = (
    "The method follows S⁴M (arXiv 2504.05301) on the ground of Guided Distillation (WACV 2024); the gate of the"
    " refinement and the choice among SAM's masks are fewlabel's own."
)


def collect(recipe: InstanceRecipe, folder: RunFolder, dataset: Dataset, split: Split) -> InstanceReport:
    """Gather what the report of a run shows.

    Args:
        recipe: The run's recipe.
        folder: The run folder; its stages up to eval are done.
        dataset: The data set.
        split: The run's split.

    Returns:
        The report's contents. Examples are images spread evenly over the lists, unpicked; one is held at a time, and of
        each no more than a window is kept.
    """
    scored = read_json(folder.stage("eval") / "scores.json")
    evaluated = folder.manifest("eval") or {}
    ships: InstanceMethod = "fewlabel" if recipe.smaller is None else "smaller"
    guided = ("fewlabel", "smaller")
    return InstanceReport(
        title=recipe.name,
        recipe=dump_recipe(recipe),
        facts=data_facts(recipe, dataset, split),
        student=recipe.network.name,
        sam=recipe.sam if recipe.asks_sam else "",
        scores=[ScoreRow.from_scores(method, scores) for method, scores in scored["methods"].items()],
        curves=_curves(recipe, folder),
        stages=stage_times(folder),
        versions={"fewlabel": __version__, **{name: version(name) for name in LIBRARIES}},
        hardware=evaluated.get("machine", ""),
        notes=(METHOD_NOTE,),
        created=evaluated.get("date", ""),
        classes=dataset.classes,
        ships=ships,
        refined=guided if recipe.student.refine is not None and recipe.student.unlabelled_weight else (),
        burn_in=recipe.student.burn_in,
        unlabelled=list(_unlabelled(recipe, folder, dataset, split)),
        test=list(_test(recipe, folder, dataset, split, ships)),
    )


def _curves(recipe: InstanceRecipe, folder: RunFolder) -> dict[str, list[dict[str, object]]]:
    logs = {"Teacher": folder.stage("teach") / LOG}
    if "guided-distillation" in recipe.compare:
        logs["Plain teacher, of guided distillation"] = folder.stage("baselines") / PLAIN_TEACHER / LOG
    logs |= {method: method_folder(folder, method) / LOG for method in recipe.methods}
    return {name: read_log(path) for name, path in logs.items()}


def middle(size: tuple[int, int], side: int = SIDE) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of what is shown of an image: its middle, at most `side` along each axis."""
    rows, columns = (min(length, side) for length in size)
    return (size[0] - rows) // 2, (size[1] - columns) // 2, rows, columns


def in_window(objects: Instances, window: tuple[int, int, int, int]) -> Instances:
    """The objects with a pixel in a window (top, left, rows, columns), cut to it; no mask is unpacked."""
    top, left, rows, columns = window
    if tuple(objects.size) == (rows, columns):
        return objects.select(objects.areas() > 0)
    cut = [codes.crop(rle, top, left, rows, columns) for rle in objects.rles]
    runs = [codes.spans(rle) for rle in cut]
    seen = np.array([number for number, one in enumerate(runs) if one.area], np.int64)
    boxes = [codes.box(runs[number], rows) for number in seen]
    return replace(
        objects,
        size=(rows, columns),
        rles=tuple(cut[number] for number in seen),
        classes=objects.classes[seen],
        scores=objects.scores[seen],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
    )


def _unlabelled(recipe: InstanceRecipe, folder: RunFolder, dataset: Dataset, split: Split) -> Iterator[ObjectPicture]:
    """Unlabelled images: the truth if known, what the trained student says as a teacher, and that refined."""
    chosen = spread(split.unlabelled, UNLABELLED_EXAMPLES)
    if not chosen:
        return
    network = load_network(recipe, folder, "fewlabel", class_count(dataset))
    sam = frozen_sam(recipe) if recipe.student.refine is not None else None
    for number, id in enumerate(chosen):
        known = dataset.labelled(id).instances if dataset.has_mask(id) else None
        image = dataset.image(id)
        window = middle(image.size)
        pixels = _cut(colours(image), window)
        truth = None if known is None else in_window(known, window)
        yield ObjectPicture(
            id,
            pixels,
            image.size,
            [_truth(truth, window[2:]), *pseudo_panels(recipe, network, sam, pixels, truth, id, number)],
        )


def pseudo_panels(
    recipe: InstanceRecipe,
    network: InstanceSegmenter,
    sam: PromptableSegmenter | None,
    pixels: np.ndarray,
    truth: Instances | None,
    id: str,
    number: int,
) -> list[ObjectPanel]:
    """What a network says of an image as a teacher, and what refinement makes of that.

    Args:
        recipe: The run's recipe: its filter and its refinement.
        network: The teacher, in eval mode.
        sam: Frozen; None without refinement.
        pixels: float32 `(3, h, w)` in [0, 1].
        truth: The true objects, if known; masks are then compared with them.
        id: Name of the image.
        number: Decides SAM's points.

    Returns:
        One panel, or two.
    """
    rows, columns = pixels.shape[1:]
    side = -(-max(rows, columns) // STRIDE) * STRIDE  # padded as training crops are
    view = padded(pixels, np.zeros((0, rows, columns), bool), np.zeros(0, np.int64), side, id)
    with torch.inference_mode():
        said = network(view.image[None])
        pseudo = pseudo_labels(
            said.class_logits[0], said.mask_logits[0], view.size, view.content, recipe.student.filter
        )
        before = _instances(image_masks(pseudo, view.size, view.content), pseudo.classes, pseudo.scores, view)
        found = [ObjectPanel("Pseudo-labels", _counted(len(before), before, truth), before, scored=True)]
        if sam is None or recipe.student.refine is None:
            return found
        generator = torch_generator(recipe.seed, number, "refinement")
        refined = refine(sam, view, pseudo, generator, recipe.student.refine)
    dropped = np.setdiff1d(np.arange(len(before)), refined.kept.numpy())
    after = _instances(refined.masks, refined.classes, refined.scores, view)
    fates = ["accepted" if by_sam else "kept" for by_sam in refined.by_sam.tolist()] + ["dropped"] * len(dropped)
    shown = _joined(after, before.select(dropped))
    note = f"{fates.count('accepted')} accepted, {fates.count('kept')} kept"
    note += f", {len(dropped)} dropped" if len(dropped) else ""
    return [*found, ObjectPanel("Refined by SAM", note + _quality(after, truth), shown, fates, scored=True)]


def _test(
    recipe: InstanceRecipe, folder: RunFolder, dataset: Dataset, split: Split, ships: InstanceMethod
) -> Iterator[ObjectPicture]:
    """Test images: the truth, and what the network that ships finds in the whole image."""
    chosen = spread(split.test, TEST_EXAMPLES)
    if not chosen:
        return
    network = load_network(recipe, folder, ships, class_count(dataset))
    for id in chosen:
        sample = dataset.labelled(id)
        seen = colours(sample.image)
        window = middle(sample.image.size)
        found = in_window(find_objects(network, seen, side=recipe.eval.side), window)
        sure = found.select(found.scores >= SURE)
        note = f"{len(sure)} with a score of {SURE} or more"
        if not len(sure) and len(found):
            note += f", highest score {found.scores.max():.2f}"
        truth = in_window(sample.instances, window)
        panels = [_truth(truth, window[2:]), ObjectPanel("Found", note, sure, scored=True)]
        yield ObjectPicture(id, _cut(seen, window), sample.image.size, panels)


def _truth(truth: Instances | None, size: tuple[int, ...]) -> ObjectPanel:
    if truth is None:
        return ObjectPanel("Image", "human label unknown", Instances((size[0], size[1])))
    return ObjectPanel("Human label", f"{len(truth)} object{'' if len(truth) == 1 else 's'}", truth)


def _cut(image: torch.Tensor, window: tuple[int, int, int, int]) -> np.ndarray:
    """A copy of the window of an image `(3, H, W)`, which lets go of the whole."""
    top, left, rows, columns = window
    return image[:, top : top + rows, left : left + columns].numpy().copy()


def _instances(masks: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, view: View) -> Instances:
    """Masks `(N, H, W)` of a padded view as objects of its content; those without a pixel there stay."""
    rows, columns = view.content
    inside = masks[:, :rows, :columns].numpy()
    return Instances.from_masks(inside, classes=classes.numpy(), scores=scores.numpy(), source="teacher")


def _joined(first: Instances, second: Instances) -> Instances:
    return replace(
        first,
        rles=first.rles + second.rles,
        classes=np.concatenate([first.classes, second.classes]),
        scores=np.concatenate([first.scores, second.scores]),
        boxes=np.concatenate([first.boxes, second.boxes]),
    )


def _counted(count: int, objects: Instances, truth: Instances | None) -> str:
    return f"{count} by the trained student as the teacher" + _quality(objects, truth)


def _quality(objects: Instances, truth: Instances | None) -> str:
    """How well pseudo-labels fit the truth, for a note; nothing where that is unknown or there are none."""
    if truth is None or not len(objects):
        return ""
    quality: MaskQuality = mask_quality(objects, truth)
    return f"; mean IoU with the truth {quality['iou'] / 100:.2f}"
