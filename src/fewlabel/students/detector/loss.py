"""The detector's loss: D-FINE's terms, except that detections in ignored regions are not called false."""

from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_d_fine import DFineLoss

from fewlabel.students.detector.boxes import CropBoxes

SILENT = -100.0  # a logit at which "no object" costs nothing in float32

Target = dict[str, Tensor]
"""What is known of one frame: `class_labels` int64 (N,) zeros, `boxes` float32 (N, 4) centre x, centre y, width and
height in units of the frame, `ignored` bool (F, F), pixels where nothing is false."""


class IgnoringLoss(DFineLoss):
    """D-FINE's loss on a `Target` for each frame.

    A query that was matched to a true box is trained as ever. Any other is asked to say "no object", unless the centre
    of its box lies on an ignored pixel; then its score has no influence and receives no gradient.
    """

    def loss_labels_vfl(
        self,
        outputs: dict[str, Any],
        targets: list[Target],
        indices: list[tuple[Tensor, Tensor]],
        num_boxes: float,
        log: bool = True,
    ) -> dict[str, Tensor]:
        """Varifocal loss (Zhang et al., CVPR 2021) of all queries but those in ignored regions."""
        ignored = torch.stack([target["ignored"] for target in targets])
        unjudged = in_regions(outputs["pred_boxes"].detach(), ignored)
        unjudged[self._get_source_permutation_idx(indices)] = False
        logits = outputs["logits"].masked_fill(unjudged[..., None], SILENT)
        terms: dict[str, Tensor] = super().loss_labels_vfl({**outputs, "logits": logits}, targets, indices, num_boxes)
        return terms


def target_of(known: CropBoxes, device: torch.device) -> Target:
    """The target that a loss and the denoising take, from boxes in pixels of the frame."""
    corners = torch.from_numpy(known.boxes)
    first, last = corners.split(2, 1)
    boxes = torch.cat([(first + last) / 2, last - first], 1) / known.ignored.shape[-1]
    return {
        "class_labels": torch.zeros(len(boxes), dtype=torch.int64, device=device),
        "boxes": boxes.to(device),
        "ignored": torch.from_numpy(known.ignored).to(device),
    }


def in_regions(boxes: Tensor, regions: Tensor) -> Tensor:
    """Whether the centres of boxes lie on marked pixels.

    Args:
        boxes: (B, Q, 4) centre x, centre y, width, height, in units of the frame.
        regions: bool (B, F, F).

    Returns:
        bool (B, Q).
    """
    side = regions.shape[-1]
    columns, rows = (boxes[..., :2] * side).long().clamp(0, side - 1).unbind(-1)
    return regions[torch.arange(len(boxes), device=boxes.device)[:, None], rows, columns]


def detection_loss(output: Any, targets: list[Target], config: Any) -> dict[str, Tensor]:
    """Loss of one forward pass in training.

    Every layer of the decoder, its first guess and the encoder's choice of queries are matched to the true boxes and
    supervised alike; the groups of noised true boxes (Zhang et al., DINO, ICLR 2023) are supervised without matching.

    transformers 5 has a function for this too. It takes the first guess for the first layer: boxes of one layer are
    then trained with the corners of the next, and the last layer has no fine-grained localisation loss.

    Args:
        output: `DFineModelOutput` of a forward pass in training mode with `targets` as its labels.
        targets: one per frame.
        config: the network's `DFineConfig`.

    Returns:
        `loss`, the sum, and its parts by kind, each summed over layers and groups: `vfl` (score), `bbox` and `giou`
        (box), `fgl` (distribution of each edge), `ddf` (distillation of the last layer into those before it).
    """
    plan = output.denoising_meta_values
    first = plan["dn_num_split"][0] if plan else 0  # queries before this one are noised true boxes
    wanted = _layers(output, slice(first, None))
    encoder = _guess(output.enc_topk_logits, output.enc_topk_bboxes)
    outputs = {**wanted[-1], "auxiliary_outputs": [*wanted[:-1], encoder]}
    if plan:
        outputs["dn_auxiliary_outputs"] = _layers(output, slice(first))
        outputs["denoising_meta_values"] = plan
    criterion = IgnoringLoss(config).to(output.enc_topk_logits.device)
    terms: dict[str, Tensor] = {}
    for name, value in criterion(outputs, targets).items():
        kind = name.split("_")[1]
        terms[kind] = terms[kind] + value if kind in terms else value
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def _guess(logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Scores and boxes as the library's loss takes them: float32, boxes inside the frame."""
    return {"logits": logits.float(), "pred_boxes": boxes.float().clamp(0, 1)}


def _layers(output: Any, queries: slice) -> list[dict[str, Tensor]]:
    """What the decoder says of some queries: its first guess, then every layer."""
    logits, boxes = output.intermediate_logits[:, :, queries], output.intermediate_reference_points[:, :, queries]
    corners = output.intermediate_predicted_corners[:, :, queries].float()
    anchors = output.initial_reference_points[:, :, queries].float()
    teacher = {"teacher_corners": corners[:, -1], "teacher_logits": logits[:, -1].float()}
    layers = [
        {
            **_guess(logits[:, layer + 1], boxes[:, layer + 1]),
            "pred_corners": corners[:, layer],
            "ref_points": anchors[:, layer],
            **teacher,
        }
        for layer in range(corners.shape[1])
    ]
    return [_guess(logits[:, 0], boxes[:, 0]), *layers]
