"""UNet: a narrow U-Net that keeps the full resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.students.layers import Student, conv_norm, initialise

WIDTHS = (8, 16, 32, 64, 64)  # channels at strides 1, 2, 4, 8 and 16


def _step(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(conv_norm(inputs, outputs, stride=stride), nn.ReLU(inplace=True))


class UNet(Student):
    """Small U-Net: (B, 1, H, W) standardised images to (B, 1, H, W) logits of "target".

    Targets of a few pixels need logits that are made at full resolution, which costs most of the time on a CPU. So
    stride 1 sees one convolution before and one after the coarse levels, with 8 channels; levels are halved by
    convolutions of stride 2 and joined by addition, so that no wide concatenation passes through memory.

    Size: 0.203 M parameters, 0.35 G multiply-accumulates on 256x256.

    Source: the encoder-decoder with skips of Ronneberger et al., MICCAI 2015, with additive skips as in feature
    pyramids (Lin et al., CVPR 2017); widths and depth are our own choice.
    """

    def __init__(self) -> None:
        """Make an untrained network; torch's global generator draws its weights."""
        super().__init__()
        pairs = list(zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        self.stem = _step(1, WIDTHS[0])
        self.down = nn.ModuleList(nn.Sequential(_step(fine, wide, 2), _step(wide, wide)) for fine, wide in pairs)
        self.lateral = nn.ModuleList(conv_norm(wide, fine, kernel=1) for fine, wide in pairs)
        self.up = nn.ModuleList(_step(fine, fine) for fine, _ in pairs)
        self.last = nn.Conv2d(WIDTHS[0], 1, 1)
        initialise(self, self.last)

    def _forward(self, images: Tensor) -> Tensor:
        """The network proper; sides are multiples of 16."""
        levels = [self.stem(images)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x: Tensor = levels.pop()
        for lateral, up in zip(reversed(self.lateral), reversed(self.up), strict=True):
            coarse = F.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = up(torch.relu(coarse + levels.pop()))
        logits: Tensor = self.last(x)
        return logits
