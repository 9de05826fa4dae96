"""The teacher's full-resolution head: a small U-shaped network into which SAM's maps are fused."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewlabel.data.tiles import TILE

PRIOR_LOGIT = -4.0  # targets cover about a pixel in a thousand; starting there spares the first steps


class Block(nn.Module):
    """Two 3 × 3 convolutions with group normalisation and a shortcut; the first may halve the resolution.

    Groups, not batches, are normalised: rendered and recorded images share a batch but not their statistics.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Map ``inputs`` to ``outputs`` channels (a multiple of 4) at 1 / ``stride`` of the resolution."""
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(4, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        x = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(x)))


class Projection(nn.Module):
    """A feature map of SAM, normalised per image, projected to few channels and resampled to a grid of the head."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Project ``inputs`` to ``outputs`` channels."""
        super().__init__()
        self.norm = nn.GroupNorm(1, inputs)
        self.project = nn.Conv2d(inputs, outputs, 1)

    def forward(self, feature: Tensor, size: Sequence[int]) -> Tensor:
        """Float (B, inputs, h, w) to (B, outputs, *size), bilinear."""
        # Maps come as views of (B, h, w, C); group_norm crashes in the backward pass of such layouts (torch 2.13).
        projected = self.project(self.norm(feature.contiguous()))
        return F.interpolate(projected, size=tuple(size), mode="bilinear", align_corners=False)


class FusionHead(nn.Module):
    """U-shaped network over strides 1, 2 and 4 that takes in SAM's features where their own resolution belongs.

    A map of SAM joins at stride 2 if its cells cover at most two pixels of a tile, else at stride 4.
    """

    def __init__(self, inputs: int, width: int, projected: int, maps: Sequence[tuple[int, int]]) -> None:
        """Build the head.

        Args:
            inputs: Channels of the pixels: the image and its responses.
            width: Channels at stride 1; twice and four times as many at strides 2 and 4.
            projected: Channels to which each of SAM's maps is projected.
            maps: Channels and side, for a tile, of each map that SAM provides.
        """
        super().__init__()
        self.fine_maps = tuple(side * 2 >= TILE for _, side in maps)
        self.projections = nn.ModuleList(Projection(channels, projected) for channels, _ in maps)
        fine = projected * sum(self.fine_maps)
        coarse = projected * len(maps) - fine
        self.full = Block(inputs, width)
        self.down_half = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.half_block = Block(2 * width + fine, 2 * width)
        self.down_quarter = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.quarter_block = Block(4 * width + coarse, 4 * width)
        self.up_half = nn.Conv2d(4 * width, 2 * width, 1)
        self.half_merge = Block(2 * width, 2 * width)
        self.up_full = nn.Conv2d(2 * width, width, 1)
        self.merge = nn.Conv2d(width, width, 3, padding=1)
        self.logit = nn.Conv2d(width, 1, 1)
        nn.init.normal_(self.logit.weight, std=0.01)
        self.logit.bias = nn.Parameter(torch.tensor([PRIOR_LOGIT]))

    def forward(self, pixels: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits of a batch.

        Args:
            pixels: float (B, inputs, H, W): the standardised image and its responses; H, W multiples of 4.
            maps: SAM's maps, float (B, C, h, w), as many as the head was built for.

        Returns:
            float (B, 1, H, W).
        """
        full = self.full(pixels)
        half = F.relu(self.down_half(full))
        quarter_size = (half.shape[-2] // 2, half.shape[-1] // 2)
        fine: list[Tensor] = []
        coarse: list[Tensor] = []
        for projection, feature, is_fine in zip(self.projections, maps, self.fine_maps, strict=True):
            size = half.shape[-2:] if is_fine else quarter_size
            (fine if is_fine else coarse).append(projection(feature, size))
        half = self.half_block(torch.cat([half, *fine], dim=1))
        quarter = self.quarter_block(torch.cat([F.relu(self.down_quarter(half)), *coarse], dim=1))
        half = self.half_merge(half + _twice(self.up_half(quarter)))
        full = F.relu(self.merge(full + _twice(self.up_full(half))))
        return self.logit(full)


def _twice(x: Tensor) -> Tensor:
    """A map at twice its resolution, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
