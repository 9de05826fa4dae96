"""ALCNet: local contrast of features, fused from fine to coarse by attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.students.layers import Student, conv_norm, enlarge, initialise, residual_stage, stem, widen

WIDTHS = (8, 16, 32, 64)  # channels at strides 2, 4, 8 and 16
BLOCKS = 4
REDUCTION = 4
# The paper takes 13 and 17 pixels at strides 1, 2 and 4; at strides 4, 8 and 16 the same reach is this many cells.
SHIFTS = (3, 4)
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, 1))  # (row, column); the other four are their opposites


def local_contrast(x: Tensor) -> Tensor:
    """Multi-scale patch contrast of every channel.

    At each cell ``max over d of min over the four directions k of (x[+d k] - x) * (x[-d k] - x)``: positive only where
    the cell differs from both sides with the same sign in all directions, so that a flat map gives 0 and an edge at
    most 0.

    Args:
        x: (B, C, H, W); beyond the border the last row and column are repeated (the published code wraps around).

    Returns:
        float32 (B, C, H, W), in squared units of ``x``.

    Source: Dai et al., TGRS 2021, after Wei et al., Pattern Recognition 58, 2016.
    """
    x = x.float()  # a difference of nearly equal bfloat16 values, squared, is noise
    height, width = x.shape[-2:]
    reach = max(SHIFTS)
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")

    def moved(row: int, column: int) -> Tensor:
        """What lies this far away, less the cell itself."""
        return padded.narrow(2, reach + row, height).narrow(3, reach + column, width) - x

    scales = []
    for d in SHIFTS:
        products = [moved(d * row, d * column) * moved(-d * row, -d * column) for row, column in DIRECTIONS]
        scales.append(torch.stack(products).amin(0))
    return torch.stack(scales).amax(0)


class BottomUpModulation(nn.Module):
    """Bottom-up local attentional modulation ``Z = L(X) * Y + X``, then a 3x3 convolution.

    X are the fine low-level and Y the coarse high-level features, both (B, C, H, W) and normalised first because
    contrasts are squares; L is a point-wise channel attention with a bottleneck of ``C // 4`` units.

    Source: Dai et al., TGRS 2021.
    """

    def __init__(self, channels: int) -> None:
        """Make normalisations, attention and convolution."""
        super().__init__()
        hidden = channels // REDUCTION
        self.norm_high, self.norm_low = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.up = nn.Sequential(
            conv_norm(channels, hidden, kernel=1),
            nn.ReLU(inplace=True),
            conv_norm(hidden, channels, kernel=1),
            nn.Sigmoid(),
        )
        self.post = nn.Sequential(conv_norm(channels, channels), nn.ReLU(inplace=True))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Fuse; both and the result are (B, C, H, W)."""
        low = self.norm_low(low)
        fused: Tensor = self.post(self.up(low) * self.norm_high(high) + low)
        return fused


class ALCNet(Student):
    """ALCNet: (B, 1, H, W) standardised images to (B, 1, H, W) logits of "target".

    A stem of stride 4, three stages of four residual blocks with 16, 32 and 64 channels at strides 4, 8 and 16; the
    `local_contrast` of each stage, joined from coarse to fine by transposed convolutions and `BottomUpModulation`; a
    last transposed convolution to stride 2, the head, and bilinear up-sampling.

    Size: 0.426 M parameters (published 0.427 M). 0.38 G multiply-accumulates on 256x256, as published, by the counting
    of `ACM`, which charges transposed convolutions four times and batch normalisations too; the arithmetic really done
    is 0.30 G. Contrasts have no parameters and are not counted.

    Not sure: the figures are those of the BasicIRSTD toolbox, whose network of this name has this stem, these stages
    and transposed convolutions but leaves the contrast out and fuses as ACM does. The paper's own network keeps full
    resolution in its first stage. This one has the toolbox's layout and the paper's two ideas, with the contrast's
    shifts scaled to its strides.

    Source: Dai et al., "Attentional Local Contrast Networks for Infrared Small Target Detection", TGRS 2021.
    """

    def __init__(self) -> None:
        """Make an untrained network; torch's global generator draws its weights."""
        super().__init__()
        final, first, second, third = WIDTHS
        self.stem = stem(final, first)
        self.stage1 = residual_stage(first, first, 1, BLOCKS)
        self.stage2 = residual_stage(first, second, 2, BLOCKS)
        self.stage3 = residual_stage(second, third, 2, BLOCKS)
        self.widen2, self.fuse2 = widen(third, second), BottomUpModulation(second)
        self.widen1, self.fuse1 = widen(second, first), BottomUpModulation(first)
        self.widen0 = widen(first, final)
        last = nn.Conv2d(final // 4, 1, 1)
        self.head = nn.Sequential(conv_norm(final, final // 4), nn.ReLU(inplace=True), last)
        initialise(self, last)

    def _forward(self, images: Tensor) -> Tensor:
        """The network proper; sides are multiples of 16."""
        low1 = self.stage1(self.stem(images))
        low2 = self.stage2(low1)
        high = self.widen2(local_contrast(self.stage3(low2)))
        high = self.widen1(self.fuse2(high, local_contrast(low2)))
        high = self.widen0(self.fuse1(high, local_contrast(low1)))
        return enlarge(self.head(high))
