"""Where SAM is asked about pseudo-masks: random points inside them, on their neighbours, and their boxes.

Points are xy in continuous image pixels: the centre of stride-4 column c is 4 c + 2. The published code multiplies by 4
alone, which asks at the upper left corner of the cell.
"""

from typing import Literal

import torch
from torch import Tensor

from fewlabel.s4m.pseudo import Pseudo, content_cells
from fewlabel.sam.promptable import PAD_LABEL

Points = Literal["mask", "softmax"]


def log_weights(pseudo: Pseudo, cells: tuple[int, int], points: Points) -> Tensor:
    """Logarithm of the weight with which each cell is drawn as a point of its mask.

    Args:
        pseudo: N pseudo-labels.
        cells: Rows and columns of the content in cells; what is beyond is never drawn.
        points: `mask` for the probability inside the binary mask (the paper), `softmax` for the softmax of the logits
            over the whole map, which is far more peaked and may leave the mask (the published code).

    Returns:
        float `(N, h, w)`, not normalised; minus infinity where nothing is drawn.
    """
    if points == "mask":  # masks end at the content
        return torch.nn.functional.logsigmoid(pseudo.logits).masked_fill(~pseudo.masks, -torch.inf)
    weights = torch.full_like(pseudo.logits, -torch.inf)
    weights[:, : cells[0], : cells[1]] = pseudo.logits[:, : cells[0], : cells[1]]
    return weights


def draw_cells(weights: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw cells without replacement, each time with probability proportional to the weight among those left.

    The `count` largest sums of log weight and Gumbel noise are such a draw (Kool et al., ICML 2019); unlike
    `torch.multinomial` it takes log weights, and maps with fewer cells than asked for.

    Args:
        weights: float `(..., h, w)`, logarithms as `log_weights` gives them.
        count: Cells to draw for each map.
        generator: The only randomness; it may be on another device.

    Returns:
        Rows and columns int64 `(..., count, 2)`, and bool `(..., count)`: False where no cell was left, whose entry
        means nothing.
    """
    width = int(weights.shape[-1])
    flat = weights.flatten(-2)
    uniform = torch.rand(flat.shape, generator=generator, device=generator.device, dtype=torch.float32).to(flat.device)
    tiny = torch.finfo(torch.float32).tiny
    keys = flat - torch.log(-torch.log(uniform.clamp(tiny, 1 - 2**-24)))
    best, index = keys.topk(min(count, flat.shape[-1]), dim=-1)
    missing = count - int(index.shape[-1])
    best = torch.nn.functional.pad(best, (0, missing), value=-torch.inf)
    index = torch.nn.functional.pad(index, (0, missing))
    return torch.stack([index // width, index % width], -1), best > -torch.inf


def to_pixels(cells: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Centres of cells as points of the image.

    Args:
        cells: int `(..., 2)` rows and columns.
        grid: Rows and columns of the grid.
        size: Rows and columns of the image that the grid covers.

    Returns:
        float32 `(..., 2)` xy in image pixels.
    """
    scale = torch.tensor([size[0] / grid[0], size[1] / grid[1]], device=cells.device)
    return ((cells + 0.5) * scale).flip(-1).float()


def tight_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of masks `(N, H, W)`, none empty: float32 `(N, 4)`, xyxy in pixel edges."""
    edges = []
    for side in (masks.any(1), masks.any(2)):  # columns, then rows
        length = int(side.shape[1])
        first = side.to(torch.uint8).argmax(1)
        edges.append((first, length - side.flip(1).to(torch.uint8).argmax(1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], 1).float()


def neighbours(masks: Tensor, count: int) -> Tensor:
    """The nearest other masks of each mask.

    Near is a small gap between the boxes, and of equal gaps the smaller distance between the boxes' centres. Where two
    masks share more than half of the smaller one they are guesses at the same object, no neighbours.

    Args:
        masks: bool `(N, h, w)`, none empty.
        count: Most neighbours of a mask.

    Returns:
        int64 `(N, count)`, nearest first; -1 where there is none.
    """
    number = len(masks)
    boxes = tight_boxes(masks)
    gap = torch.maximum(boxes[:, None, :2], boxes[None, :, :2]) - torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    gap = gap.clamp_min(0).norm(dim=-1)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = (middle[:, None] - middle[None]).norm(dim=-1)
    flat = masks.flatten(1).float()
    shared, area = flat @ flat.T, flat.sum(1)
    same = shared > 0.5 * torch.minimum(area[:, None], area[None])  # every mask is the same as itself
    order = away.argsort(dim=1, stable=True)
    ranked = gap.masked_fill(same, torch.inf).gather(1, order)
    nearest = ranked.argsort(dim=1, stable=True)[:, :count]
    found = torch.where(ranked.gather(1, nearest) < torch.inf, order.gather(1, nearest), -1)
    return torch.nn.functional.pad(found, (0, max(0, count - number)), value=-1)


def prompt_points(
    pseudo: Pseudo,
    size: tuple[int, int],
    content: tuple[int, int],
    generator: torch.Generator,
    count: int = 3,
    draws: int = 1,
    points: Points = "mask",
    negatives: int = 0,
) -> tuple[Tensor, Tensor]:
    """Point prompts for all pseudo-labels of an image, drawn afresh for every draw.

    Args:
        pseudo: N pseudo-labels, at least one.
        size: Rows and columns of the image, padding included.
        content: Rows and columns of the image itself, in which all points lie.
        generator: The only randomness.
        count: Points on each pseudo-mask; fewer where it has fewer cells.
        draws: Prompts for each pseudo-mask.
        points: See `log_weights`.
        negatives: Neighbours on each of which one background point is drawn, outside the pseudo-mask itself.

    Returns:
        Points float32 `(N, draws, count + negatives, 2)` xy in image pixels, and their labels int64 `(N, draws, count +
        negatives)`: 1 object, 0 background, `PAD_LABEL` for points that could not be drawn.
    """
    grid = (int(pseudo.masks.shape[1]), int(pseudo.masks.shape[2]))
    cells = content_cells(grid, size, content)
    weights = log_weights(pseudo, cells, points)
    drawn = [draw_cells(weights[:, None].expand(-1, draws, -1, -1), count, generator)]
    if negatives:
        inside = log_weights(pseudo, cells, "mask")
        near = neighbours(pseudo.masks, negatives)
        for rank in range(negatives):
            other = near[:, rank]
            usable = (other >= 0)[:, None, None] & ~pseudo.masks
            there = inside[other.clamp_min(0)].masked_fill(~usable, -torch.inf)
            drawn.append(draw_cells(there[:, None].expand(-1, draws, -1, -1), 1, generator))
    labels = [torch.where(held, int(i == 0), PAD_LABEL) for i, (_, held) in enumerate(drawn)]
    return to_pixels(torch.cat([spots for spots, _ in drawn], 2), grid, size), torch.cat(labels, 2)
