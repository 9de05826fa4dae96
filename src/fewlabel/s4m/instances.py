"""From the network's logits to the objects of an image, at the image's own resolution.

The library's own way cuts masks out at 384 x 384 pixels and enlarges them by the nearest neighbour, which leaves steps
on every object of a larger image. Here logits are enlarged, and masks cut out of the result.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewlabel.core import masks as mask_ops
from fewlabel.core.errors import DataError
from fewlabel.core.rle import Rle
from fewlabel.core.types import Instances, Source
from fewlabel.s4m.network import CELL

TOP = 100  # pairs of query and class that are looked at, COCO's most detections of an image
PIXELS = 2**24  # most logits at image resolution that are held at once: 64 MiB


@torch.no_grad()
def image_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    content: tuple[int, int],
    *,
    size: tuple[int, int] | None = None,
    top: int = TOP,
    source: Source = "student",
) -> Instances:
    """Objects of one image.

    The most probable pairs of query and class are taken, "no object" left out; a query may give several objects of
    different classes. Its mask is where its logit, enlarged bilinearly, is above 0. The score is the class's
    probability times the mean probability of the mask's pixels. Pairs with an empty mask are dropped; nothing is
    suppressed.

    Padding is cut off before logits are enlarged; every pixel's centre is looked up where it lies among the centres of
    the cells. A few masks at a time are held at image resolution, never all.

    Args:
        class_logits: float `(Q, K + 1)`, the last class "no object".
        mask_logits: float `(Q, h, w)`, cells of 4 x 4 pixels over the padded image.
        content: rows and columns of the image that the network saw, without its padding.
        size: rows and columns of the original, where the network saw a resized image; by default `content`.
        top: most objects.
        source: who made them.

    Returns:
        Objects by falling score, of `size`.

    Raises:
        DataError: The content is empty or larger than what the cells cover, or the size is empty.
    """
    queries, classes = class_logits.shape[0], class_logits.shape[1] - 1
    rows, columns = (-(-side // CELL) for side in content)
    if min(content) < 1 or rows > mask_logits.shape[1] or columns > mask_logits.shape[2]:
        raise DataError(
            f"An image of {content[0]} x {content[1]} pixels does not lie in maps of {mask_logits.shape[1]} x"
            f" {mask_logits.shape[2]} cells of {CELL} pixels; give the size of the image that the network saw."
        )
    size = content if size is None else size
    if min(size) < 1:
        raise DataError(f"Objects of an image of {size[0]} x {size[1]} pixels were asked for; give the image's size.")
    probabilities = class_logits.float().softmax(-1)[:, :classes].reshape(queries * classes)
    sure, best = probabilities.sort(descending=True, stable=True)  # of equal ones the first query comes first
    sure, best = sure[:top], best[:top]
    wanted, query = (best // classes).unique(return_inverse=True)
    rles: list[Rle] = []
    boxes, means = [np.zeros((0, 4), np.float32)], [sure.new_zeros(0)]
    places = _places((rows, columns), content, size).to(mask_logits.device)
    for part in wanted.split(max(1, PIXELS // (size[0] * size[1]))):
        masks, mean = _cut_out(mask_logits[part, :rows, :columns], places)
        rles += mask_ops.encode_many(masks)
        boxes.append(mask_ops.boxes(masks))
        means.append(mean)
    scores = (sure * torch.cat(means)[query]).cpu().numpy()
    kinds, masks_of, corners = (best % classes).cpu().numpy(), query.cpu().numpy(), np.concatenate(boxes)
    order = np.argsort(-scores, kind="stable")
    order = order[corners[masks_of[order], 2] > 0]  # an empty mask has a box of zeros
    return Instances(
        size=(int(size[0]), int(size[1])),
        rles=tuple(rles[number] for number in masks_of[order]),
        classes=kinds[order],
        scores=scores[order],
        boxes=corners[masks_of[order]],
        source=source,
    )


def _places(cells: tuple[int, int], content: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Where the centres of the pixels of a resized image lie on cells, float32 `(1, H, W, 2)`, x and y in -1..1."""
    axes = [
        (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * seen / (count * CELL * across)) - 1
        for count, seen, across in zip(size, content, cells, strict=True)
    ]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y], -1)[None].float()


def _cut_out(cells: Tensor, places: Tensor) -> tuple[np.ndarray, Tensor]:
    """Masks of some queries, bool `(n, H, W)`, and the mean probability inside each, float32 `(n,)`, 0 where empty."""
    logits = F.grid_sample(cells[None].float(), places, mode="bilinear", padding_mode="border", align_corners=False)[0]
    inside = logits > 0
    probabilities = logits.sigmoid().mul_(inside)
    return inside.cpu().numpy(), probabilities.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
