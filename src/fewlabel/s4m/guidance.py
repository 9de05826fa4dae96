"""What a teacher says of unlabelled images: filtered, refined by SAM, exchanged between images."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewlabel.data.views import View
from fewlabel.s4m.batches import torch_generator
from fewlabel.s4m.network import Outputs
from fewlabel.s4m.paste import PasteConfig, exchange
from fewlabel.s4m.pseudo import FilterConfig, image_masks, pseudo_labels
from fewlabel.s4m.refine import RefineConfig, refine
from fewlabel.s4m.refine_gate import RefineStats
from fewlabel.sam.promptable import PromptableSegmenter


@dataclass(frozen=True)
class Guidance:
    """Unlabelled views with pseudo-labels, and what became of these.

    Attributes:
        views: One per image, with masks and classes; pasted instances included.
        proposed: Pseudo-labels that passed the filter, over the batch.
        refined: What SAM's refinement did; zeros without it.
    """

    views: list[View]
    proposed: int
    refined: RefineStats


@torch.no_grad()
def guide(
    outputs: Outputs,
    views: Sequence[View],
    rules: FilterConfig,
    refinement: RefineConfig | None,
    sam: PromptableSegmenter | None,
    seed: int,
    step: int,
) -> Guidance:
    """Turn a teacher's outputs into pseudo-labels.

    Args:
        outputs: The teacher's, of the views' images.
        views: Unlabelled, of one size; what SAM is shown.
        rules: Which queries count.
        refinement: How SAM refines masks; None leaves them the teacher's.
        sam: Frozen; needed for a refinement.
        seed: Of the training.
        step: From 0; with the seed it decides SAM's points.

    Returns:
        The views with masks and classes.
    """
    labelled, proposed, stats = [], 0, RefineStats()
    for index, view in enumerate(views):
        found = pseudo_labels(outputs.class_logits[index], outputs.mask_logits[index], view.size, view.content, rules)
        proposed += len(found)
        if refinement is None:
            masks, classes = image_masks(found, view.size, view.content), found.classes
        else:
            assert sam is not None  # whoever asks for a refinement gives a SAM
            refined = refine(sam, view, found, torch_generator(seed, step, "refinement", index), refinement)
            masks, classes, stats = refined.masks, refined.classes, stats + refined.stats
        labelled.append(replace(view, masks=masks, classes=classes))
    return Guidance(labelled, proposed, stats)


def pasted(guidance: Guidance, config: PasteConfig | None, seed: int, step: int) -> Guidance:
    """The same after instances were exchanged between the images; as it is without a config."""
    if config is None:
        return guidance
    return replace(guidance, views=exchange(guidance.views, torch_generator(seed, step, "paste"), config))


def figures(guidance: Guidance, device: torch.device | str) -> dict[str, Tensor]:
    """Scalars for the log, per image: `pseudo`-labels proposed, `accepted` masks of SAM, sum of its `agreement`.

    The agreement is the IoU of SAM's mask with the teacher's. Sums, so that their ratios over any number of steps are
    right: accepted over pseudo is the share accepted, agreement over pseudo the mean IoU.
    """
    numbers = (guidance.proposed, guidance.refined.accepted, guidance.refined.total_iou)
    return {
        name: torch.tensor(number / len(guidance.views), device=device)
        for name, number in zip(("pseudo", "accepted", "agreement"), numbers, strict=True)
    }


class CollapseAlarm:
    """Says once on stderr when a teacher has proposed nothing for as many images as there are unlabelled ones.

    A student then learns that the world is empty, agrees with its teacher, and nothing ever shows in the loss.
    """

    def __init__(self, images: int) -> None:
        """Watch a training.

        Args:
            images: Number of unlabelled images.
        """
        self.images, self.silent, self.told = images, 0, False

    def see(self, guidance: Guidance) -> None:
        """Look at one batch."""
        self.silent = 0 if guidance.proposed else self.silent + len(guidance.views)
        if self.silent >= self.images and not self.told:
            self.told = True
            print(
                f"warning: the teacher proposed no object in the last {self.silent} unlabelled images, so the student"
                " learns nothing from them but that they are empty; lower student.filter.class_threshold, train the"
                " teacher longer, or label more images",
                file=sys.stderr,
                flush=True,
            )
