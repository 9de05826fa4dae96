"""ISTDU-Net: a U-Net with grouped, split-attended features and skips that see the whole image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.students.layers import Student, conv_norm, enlarge, initialise

STEM = 16
WIDTHS = (16, 32, 64, 128)  # bottleneck channels at strides 1, 2, 4 and 8
BLOCKS = (1, 2, 4, 8)
EXPANSION = 4  # channels that leave a bottleneck, per channel in it
RADIX = 2  # splits that attention chooses between
GROUPS = 4  # feature map groups
MEMORY = 64  # units of the skips' memory


class SplitAttention(nn.Module):
    """A grouped 3x3 convolution to `RADIX` maps, mixed per channel by weights that sum to one.

    The weights come from the pooled sum of the maps through a bottleneck, all within `GROUPS` groups of channels.
    Maps (B, C, H, W) to the same.

    Source: Zhang et al., "ResNeSt: Split-Attention Networks", CVPRW 2022.
    """

    def __init__(self, channels: int) -> None:
        """Make convolution and attention."""
        super().__init__()
        hidden = max(channels * RADIX // 4, 32)
        self.split = nn.Conv2d(channels, RADIX * channels, 3, padding=1, groups=GROUPS * RADIX, bias=False)
        self.norm = nn.BatchNorm2d(RADIX * channels)
        # No batch normalisation behind the pooling: it would see one value per image and be noise in small batches.
        self.weights = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, groups=GROUPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, RADIX * channels, 1, groups=GROUPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        maps = F.relu(self.norm(self.split(x)), inplace=True).chunk(RADIX, 1)
        pooled = torch.stack([each.mean((2, 3), keepdim=True) for each in maps]).sum(0)
        # A group's part of the result holds its weights of all splits: (B, GROUPS, RADIX, C / GROUPS, 1, 1).
        weights = self.weights(pooled).unflatten(1, (GROUPS, RADIX, -1)).softmax(2).unbind(2)
        mixed = [each * weight.flatten(1, 2) for each, weight in zip(maps, weights, strict=True)]
        return torch.stack(mixed).sum(0)


class Bottleneck(nn.Module):
    """1x1 convolution, `SplitAttention`, 1x1 convolution beside a shortcut.

    Maps (B, inputs, H, W) to (B, EXPANSION * channels, H / stride, W / stride), all values >= 0.
    """

    def __init__(self, inputs: int, channels: int, stride: int = 1) -> None:
        """Make the block; strides are averages, on both ways."""
        super().__init__()
        outputs = EXPANSION * channels
        self.body = nn.Sequential(
            conv_norm(inputs, channels, kernel=1),
            nn.ReLU(inplace=True),
            SplitAttention(channels),
            nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity(),
            conv_norm(channels, outputs, kernel=1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, conv_norm(inputs, outputs, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return F.relu(self.body(x) + self.shortcut(x))


class GlobalSkip(nn.Module):
    """A skip whose every pixel is set against the whole image, to suppress background that repeats itself.

    External attention: each of `MEMORY` units normalises its response over all pixels, each pixel then normalises over
    the units, and two learned matrices lead in and out. Maps (B, C, H, W) to the same.

    Source: Guo et al., "Beyond Self-attention: External Attention", TPAMI 2022, in the place where Hou et al. put
    their fully connected layer.
    """

    def __init__(self, channels: int) -> None:
        """Make the matrices."""
        super().__init__()
        self.before = nn.Conv2d(channels, channels, 1)
        self.keys = nn.Conv2d(channels, MEMORY, 1, bias=False)
        self.values = nn.Conv2d(MEMORY, channels, 1, bias=False)
        self.after = conv_norm(channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        # In logarithms and float32: a share of one pixel among 10^5 has no room in bfloat16.
        response = self.keys(self.before(x)).float()
        over_pixels = response - response.flatten(2).logsumexp(2)[..., None, None]
        out: Tensor = x + self.after(self.values(over_pixels.softmax(1)))
        return out


class ISTDUNet(Student):
    """ISTDU-Net: (B, 1, H, W) standardised images to (B, 1, H, W) logits of "target".

    An encoder of 1, 2, 4 and 8 split-attention bottlenecks with 64, 128, 256 and 512 channels at strides 1, 2, 4 and 8;
    a `GlobalSkip` at each level; a decoder of 1x1 convolutions, bilinear up-sampling and addition; a head at full
    resolution.

    Size: 2.750 M parameters (published 2.752 M) and, counted as in `ACM`, 7.94 G multiply-accumulates on 256x256, as
    published; 7.71 G without the batch normalisations.

    Not sure: the paper gives no table of layers; widths, blocks and the external attention are those behind the
    BasicIRSTD toolbox's figures. Its head for detection, which segmentation does not use, is left out (9 k parameters),
    and so are batch normalisations behind pooling.

    Source: Hou et al., "ISTDU-Net: Infrared Small-Target Detection U-Net", GRSL 2022.
    """

    multiple = 8

    def __init__(self) -> None:
        """Make an untrained network; torch's global generator draws its weights."""
        super().__init__()
        self.stem = nn.Sequential(conv_norm(1, STEM), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList()
        inputs = STEM
        for level, (channels, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            outputs = EXPANSION * channels
            first = Bottleneck(inputs, channels, stride=2 if level else 1)
            self.stages.append(nn.Sequential(first, *(Bottleneck(outputs, channels) for _ in range(blocks - 1))))
            inputs = outputs
        wide = [EXPANSION * channels for channels in WIDTHS]
        self.skips = nn.ModuleList(GlobalSkip(channels) for channels in wide)
        self.narrow = nn.ModuleList(
            nn.Sequential(conv_norm(coarse, fine, kernel=1), nn.ReLU(inplace=True))
            for fine, coarse in zip(wide[:-1], wide[1:], strict=True)
        )
        last = nn.Conv2d(wide[0] // 4, 1, 1)
        self.head = nn.Sequential(conv_norm(wide[0], wide[0] // 4), nn.ReLU(inplace=True), last)
        initialise(self, last)

    def _forward(self, images: Tensor) -> Tensor:
        """The network proper; sides are multiples of 8."""
        x = self.stem(images)
        levels = []
        for stage, skip in zip(self.stages, self.skips, strict=True):
            x = stage(x)
            levels.append(skip(x))
        x = levels.pop()
        for narrow in reversed(self.narrow):
            x = levels.pop() + enlarge(narrow(x))
        logits: Tensor = self.head(x)
        return logits
