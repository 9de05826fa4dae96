"""MSHNet: a plain U-Net that predicts at four scales and joins the predictions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.students.layers import Student, at_multiple, attentive_stage, enlarge, initialise

WIDTHS = (16, 32, 64, 128, 256)  # channels at strides 1, 2, 4, 8 and 16


def _stage(inputs: int, level: int) -> nn.Sequential:
    """Blocks of one level: one at full resolution, two below."""
    return attentive_stage(inputs, WIDTHS[level], 1 if level == 0 else 2)


class MSHNet(Student):
    """MSHNet: (B, 1, H, W) standardised images to (B, 1, H, W) logits of "target".

    A U-Net of residual blocks with channel and pixel attention, 16 to 256 channels at strides 1 to 16, whose four
    decoder levels each have a head; a 3x3 convolution joins their up-sampled logits. All five are supervised in
    training, which the paper does with a loss that is sensitive to scale and location
    (`fewlabel.training.losses.sls`).

    Size: 4.062 M parameters (published 4.066 M) and, counted as in `ACM`, 6.06 G multiply-accumulates on 256x256
    (published 6.11 G, for three planes and with interpolation counted); 6.00 G without the batch normalisations.

    Differences: the heads are supervised from the first step, where the paper trains the finest alone for five epochs;
    and at full resolution, where it pools the truth to each scale. The joining convolution starts as the mean.

    Source: Liu et al., "Infrared Small Target Detection with Scale and Location Sensitivity", CVPR 2024.
    """

    def __init__(self) -> None:
        """Make an untrained network; torch's global generator draws its weights."""
        super().__init__()
        levels = len(WIDTHS)
        self.stem = nn.Conv2d(1, WIDTHS[0], 1)
        self.encoder = nn.ModuleList(_stage(WIDTHS[max(level - 1, 0)], level) for level in range(levels))
        self.decoder = nn.ModuleList(_stage(WIDTHS[level] + WIDTHS[level + 1], level) for level in range(levels - 1))
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in WIDTHS[:-1])
        self.join = nn.Conv2d(levels - 1, 1, 3, padding=1)
        initialise(self, *(head for head in self.heads if isinstance(head, nn.Conv2d)))
        # Its inputs are logits of rare targets already: random kernels would spread them to tens.
        nn.init.zeros_(self.join.weight)
        nn.init.constant_(self.join.weight[:, :, 1, 1], 1 / (levels - 1))

    def _forward(self, images: Tensor) -> Tensor:
        """The network proper; sides are multiples of 16."""
        logits: Tensor = self.join(self._scales(images))
        return logits

    def head_logits(self, images: Tensor) -> Tensor:
        """Logits of all heads, as `DeeplySupervised` says: (B, 5, H, W)."""
        return at_multiple(self._all_heads, images, self.multiple)

    def _all_heads(self, images: Tensor) -> Tensor:
        """The joined head first, then those of the scales, fine to coarse; sides are multiples of 16."""
        scales = self._scales(images)
        return torch.cat([self.join(scales), scales], 1)

    def _scales(self, images: Tensor) -> Tensor:
        """Logits of the four scales at full resolution (B, 4, H, W)."""
        x = self.stem(images)
        levels: list[Tensor] = []
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        x = levels.pop()
        logits: list[Tensor] = []
        for level in reversed(range(len(levels))):
            x = self.decoder[level](torch.cat([levels[level], enlarge(x)], 1))
            mask = self.heads[level](x)
            logits.insert(0, enlarge(mask, 2**level) if level else mask)
        return torch.cat(logits, 1)
