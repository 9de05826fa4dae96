"""How an image lies in the square input of a network: exact coordinates between the two.

Coordinates are continuous: column c of an image covers [c, c + 1) and its centre is c + 0.5, and the same holds for the
columns of the frame and the cells of any grid laid over it. One linear map per axis joins the two, with the scale
`content / size`. Since the content is a whole number of pixels, that scale differs slightly between the axes and from
`side / max(size)`; pixels, points, boxes and masks all use it as it is.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

OUTSIDE = -10.0  # mask-prompt logit of the padding beyond the image: certainly background
# Cells that a cell's mean looks across: with 2, `to_image` finds straight edges again exactly, but a target of two or
# three cells fades; 1.6 keeps edges to 0.03 of a cell.
WINDOW = 1.6


@dataclass(frozen=True)
class Frame:
    """How an image of one size lies in the square input of the network.

    Attributes:
        size: `(H, W)` of the image.
        content: `(h, w)` rows and columns of the frame that the resized image covers, from the top left corner.
        side: Side of the frame.
    """

    size: tuple[int, int]
    content: tuple[int, int]
    side: int

    @classmethod
    def of(cls, size: tuple[int, int], side: int, keep_aspect: bool) -> "Frame":
        """Frame of an image: aspect kept and padded bottom and right (SAM), or squashed to the square (SAM 2).

        Args:
            size: `(H, W)` of the image.
            side: Side of the frame.
            keep_aspect: Whether the longer side alone fills the frame. The other one is rounded to whole pixels, halves
                up as in `segment_anything.utils.transforms.ResizeLongestSide`, and is at least one.

        Returns:
            The frame.
        """
        if not keep_aspect:
            return cls(size, (side, side), side)
        longest = max(size)
        rows, columns = (max(1, (2 * length * side + longest) // (2 * longest)) for length in size)
        return cls(size, (rows, columns), side)

    def points(self, xy: Tensor) -> Tensor:
        """Map image coordinates `(..., 2)` xy to frame coordinates of the same shape and dtype; differentiable.

        A point of the image, edges included, is mapped into the content, edges included, whatever is rounded.
        """
        return _stretch(xy, self.size, self.content)

    def points_back(self, xy: Tensor) -> Tensor:
        """Map frame coordinates `(..., 2)` xy to image coordinates of the same shape and dtype; differentiable."""
        return _stretch(xy, self.content, self.size)

    def boxes(self, xyxy: Tensor) -> Tensor:
        """Map boxes `(..., 4)` of image edges xyxy to boxes of frame edges of the same shape and dtype."""
        return self.points(xyxy.unflatten(-1, (2, 2))).flatten(-2)

    def contains(self, xy: Tensor) -> Tensor:
        """Whether image coordinates `(..., 2)` xy lie in the image, its edges included: bool `(...)`."""
        limits = xy.new_tensor([self.size[1], self.size[0]])
        return ((xy >= 0) & (xy <= limits)).all(-1)

    def cells(self, xy: Tensor, side: int) -> Tensor:
        """Cells that contain points, in a grid over the whole frame.

        Args:
            xy: Image coordinates `(..., 2)`.
            side: Cells of the grid along each side, as in the image embedding or the decoder's logits.

        Returns:
            int64 `(..., 2)`, column and row. Points on or beyond an edge of the image belong to the outermost cells
            that it touches, so that none is in the padding.
        """
        cells = (self.points(xy.double()) * side / self.side).floor().long()
        rows, columns = self.touched(side, side)
        return torch.stack([cells[..., 0].clamp(0, columns - 1), cells[..., 1].clamp(0, rows - 1)], -1)

    def touched(self, rows: int, columns: int) -> tuple[int, int]:
        """How many of a grid's rows and columns over the whole frame the content touches; the others are padding."""
        return -(-self.content[0] * rows // self.side), -(-self.content[1] * columns // self.side)


def to_image(low: Tensor, frame: Frame) -> Tensor:
    """Resample decoder logits to an image: bilinear, the padding left out; differentiable.

    Args:
        low: float `(..., h, w)` logits over the whole frame.
        frame: Where the image lies.

    Returns:
        `(..., H, W)`; each pixel's centre is looked up where it lies in the frame. Beyond the centres of the outermost
        cells that the content touches their value goes on, so that nothing predicted for the padding reaches the image.
    """
    rows, columns = frame.touched(int(low.shape[-2]), int(low.shape[-1]))
    scales = (
        frame.size[0] * frame.side / (frame.content[0] * low.shape[-2]),
        frame.size[1] * frame.side / (frame.content[1] * low.shape[-1]),
    )
    flat = low[..., :rows, :columns].reshape(-1, 1, rows, columns)
    # The kernel reads an axis of as many cells as pixels one to one, whatever the scale; a repeated cell avoids that.
    flat = F.pad(flat, (0, int(columns == frame.size[1]), 0, int(rows == frame.size[0])), mode="replicate")
    # F.interpolate takes a size or scales but not both, and the scale here is not the ratio of the two sizes.
    image = torch.ops.aten.upsample_bilinear2d.default(flat, list(frame.size), False, *scales)
    return image.reshape(*low.shape[:-2], *frame.size)


def to_grid(masks: Tensor, frame: Frame, side: int) -> Tensor:
    """Resample logits of an image to a square grid over the whole frame, such as a mask prompt's; differentiable.

    The grid is made to be read by `to_image`: each cell takes a mean around its centre, and what the means would lose
    on the way back is gathered likewise and added (one step of iterative back-projection, Irani and Peleg, 1991). So
    edges stay where they are to a small part of a cell; values beside a straight one overshoot by an eighth of its
    step.

    Args:
        masks: float `(..., H, W)` logits of an image of the frame's size.
        frame: Where the image lies.
        side: Cells of the grid along each side.

    Returns:
        `(..., side, side)`; `OUTSIDE` where a cell lies in the padding altogether.
    """
    rows, columns = (_gathering(frame, axis, side).to(masks) for axis in (0, 1))
    grid = rows @ masks @ columns.T
    return F.pad(grid, (0, side - len(columns), 0, side - len(rows)), value=OUTSIDE)


def _gathering(frame: Frame, axis: int, side: int) -> Tensor:
    """Weights float64 `(n, length)` with which the n touched cells of a grid gather the pixels of one image axis."""
    length, count = frame.size[axis], frame.touched(side, side)[axis]
    pixels = frame.side * length / (side * frame.content[axis])  # of the image in one cell
    centres = torch.arange(count, dtype=torch.float64) + 0.5
    reach = max(0.5, WINDOW / 2 * pixels)
    low, high = centres[:, None] * pixels - reach, centres[:, None] * pixels + reach
    edges = torch.arange(length + 1, dtype=torch.float64)
    edges[0], edges[-1] = -torch.inf, torch.inf  # the outermost pixels go on beyond the image
    means = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp_min(0.0) / (2 * reach)
    places = ((torch.arange(length, dtype=torch.float64) + 0.5) / pixels).clamp(0.5, count - 0.5)
    reading = (1.0 - (places[:, None] - centres).abs()).clamp_min(0.0)  # of the pixels, as in `to_image`
    return 2.0 * means - means @ reading @ means


def _stretch(xy: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Map coordinates `(..., 2)` xy of a rectangle `old` (rows, columns) to those of `new`.

    In double precision and product before quotient: then the far edge `old` becomes `new` exactly, and no point that is
    not beyond the one is mapped beyond the other.
    """
    factor = torch.tensor([new[1], new[0]], dtype=torch.float64, device=xy.device)
    divisor = torch.tensor([old[1], old[0]], dtype=torch.float64, device=xy.device)
    return (xy.double() * factor / divisor).to(xy.dtype)
