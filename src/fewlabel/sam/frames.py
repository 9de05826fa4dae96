"""How an image lies in the square input of a network: exact coordinates between the two."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
        """Frame of an image: aspect kept and padded bottom and right (SAM), or squashed to the square (SAM 2)."""
        if not keep_aspect:
            return cls(size, (side, side), side)
        scale = side / max(size)
        return cls(size, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), side)

    def points(self, xy: Tensor) -> Tensor:
        """Map continuous image coordinates `(..., 2)` xy to continuous frame coordinates."""
        scale = xy.new_tensor([self.content[1] / self.size[1], self.content[0] / self.size[0]])
        return xy * scale


def bilinear_matrix(length: int, scale: float, low: Tensor, axis: int) -> Tensor:
    """Interpolation weights `(length, n)` from the n cells of one axis of `low` to `length` pixels.

    Pixel i's centre lies at cell coordinate (i + 0.5) * scale - 0.5, clamped to the outermost cell centres, which is
    `F.interpolate(mode="bilinear", align_corners=False)` with a scale that need not be a ratio of integers.
    """
    cells = int(low.shape[axis - 2])
    centre = ((torch.arange(length, device=low.device, dtype=torch.float64) + 0.5) * scale - 0.5).clamp(0, cells - 1)
    grid = torch.arange(cells, device=low.device, dtype=torch.float64)
    return (1.0 - (centre[:, None] - grid).abs()).clamp_min(0.0).to(low.dtype)
