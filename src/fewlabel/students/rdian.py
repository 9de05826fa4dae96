"""RDIAN: receptive fields of four sizes, guided by local differences in eight directions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.students.layers import ConvolutionalAttention, Student, conv_norm, enlarge, initialise

FINE, WIDTH = 16, 32  # channels at strides 1 and 2
FIELDS = {1: 1, 3: 2, 5: 2, 7: 2}  # width of the kernels -> number of blocks, one branch each
REACH = 2  # pixels between a pixel and the neighbours it is compared with
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, 1))  # (row, column); the other four are their opposites


def direction_attention(images: Tensor) -> Tensor:
    """Whether pixels stand out from their surroundings, by direction.

    ``sigmoid(sum over four directions of (x - x[+2 k]) * (x - x[-2 k]))``: above one half where a pixel is brighter (or
    darker) than both sides, below where the picture slopes.

    Args:
        images: (B, 1, H, W) standardised; beyond the border the last row and column are repeated (the published code
            has zeros there).

    Returns:
        (B, 1, H, W) in (0, 1).

    Source: Sun et al., TGRS 2023, "direction attention".
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (REACH, REACH, REACH, REACH), mode="replicate")

    def difference(row: int, column: int) -> Tensor:
        """The pixel less what lies this many steps away."""
        return images - padded.narrow(2, REACH * (1 + row), height).narrow(3, REACH * (1 + column), width)

    products = [difference(row, column) * difference(-row, -column) for row, column in DIRECTIONS]
    return torch.sigmoid(torch.stack(products).sum(0))


def _step(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, leaky ReLU."""
    return nn.Sequential(conv_norm(inputs, outputs, kernel, stride), nn.LeakyReLU(inplace=True))


class FieldBlock(nn.Module):
    """Two square convolutions through half the channels, added to what came in; (B, C, H, W) to the same."""

    def __init__(self, channels: int, kernel: int) -> None:
        """Make the two convolutions."""
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(_step(channels, half, kernel), _step(half, channels, kernel))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        out: Tensor = x + self.body(x)
        return out


class RDIAN(Student):
    """RDIAN: (B, 1, H, W) standardised images to (B, 1, H, W) logits of "target".

    A convolution at full resolution, amplified by `direction_attention`; at stride 2 four parallel branches of residual
    blocks with kernels of 1, 3, 5 and 7 pixels, joined by a convolution and CBAM; the result, up-sampled, is added to
    the features of full resolution before the head.

    Size: 0.217 M parameters and, counted as in `ACM`, 3.72 G multiply-accumulates on 256x256, both as published; 3.68 G
    without the batch normalisations.

    Not sure: the paper's CBAM has biases and a batch normalisation that the shared one here has not (fewer than 100
    parameters).

    Source: Sun et al., "Receptive-Field and Direction Induced Attention Network for Infrared Dim Small Target
    Detection With a Large-Scale Dataset IRDST", TGRS 2023.
    """

    multiple = 2

    def __init__(self) -> None:
        """Make an untrained network; torch's global generator draws its weights."""
        super().__init__()
        self.fine = _step(1, FINE)
        self.down = _step(FINE, WIDTH, stride=2)
        self.branches = nn.ModuleList(
            nn.Sequential(*(FieldBlock(WIDTH, kernel) for _ in range(blocks))) for kernel, blocks in FIELDS.items()
        )
        self.join = nn.Sequential(_step(len(FIELDS) * WIDTH, WIDTH), ConvolutionalAttention(WIDTH))
        self.lateral = _step(FINE, WIDTH, kernel=1)
        last = nn.Conv2d(WIDTH // 4, 1, 1)
        self.head = nn.Sequential(conv_norm(WIDTH, WIDTH // 4), nn.ReLU(inplace=True), last)
        initialise(self, last)

    def _forward(self, images: Tensor) -> Tensor:
        """The network proper; sides are multiples of 2."""
        fine = self.fine(images)
        x = self.down(fine + fine * direction_attention(images))
        x = self.join(torch.cat([branch(x) for branch in self.branches], 1))
        logits: Tensor = self.head(torch.relu(enlarge(x) + self.lateral(fine)))
        return logits
