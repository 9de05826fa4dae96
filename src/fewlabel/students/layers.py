"""Building blocks that the students share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIOR = 0.01  # probability of "target" that an untrained student gives to every pixel


class Student(nn.Module, ABC):
    """Base of the networks that make one logit per pixel: it takes images of any size to the sizes that they accept.

    A subclass has `_forward`.
    """

    multiple: ClassVar[int] = 16
    """Largest stride: the network itself sees images whose sides are multiples of it."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of any size.

        Args:
            images: float32 (B, 1, H, W), standardised, H and W >= 1.

        Returns:
            float32 (B, 1, H, W) logits; bfloat16 under autocast.
        """
        return at_multiple(self._forward, images, self.multiple)

    @abstractmethod
    def _forward(self, images: Tensor) -> Tensor:
        """The network proper, (B, 1, H, W) to (B, 1, H, W); sides are multiples of `multiple`."""


@runtime_checkable
class DeeplySupervised(Protocol):
    """A student that trains with more heads than the one that predicts."""

    def head_logits(self, images: Tensor) -> Tensor:
        """Logits of all heads.

        Args:
            images: float32 (B, 1, H, W), standardised, H and W >= 1.

        Returns:
            (B, K, H, W); the first is what the student's `forward` returns.
        """


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A "same" convolution without bias and a batch normalisation.

    Batch rather than group normalisation: its statistics are constants at inference, so that it folds into the
    convolution, the output at a pixel does not depend on the size of the image around it, and a crop's statistics in
    training (8 crops of 256x256 and more) rest on half a million pixels.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: odd width of the kernel.
        stride: step between output pixels.

    Returns:
        Module from (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride)).
    """
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, fig. 2).

    Maps (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride)), all values >= 0.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Make the block; where shape or width change the shortcut is a 1x1 convolution."""
        super().__init__()
        self.first = conv_norm(inputs, outputs, stride=stride)
        self.second = conv_norm(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return F.relu(self.second(F.relu(self.first(x), inplace=True)) + self.shortcut(x), inplace=True)


def stem(hidden: int, outputs: int) -> nn.Sequential:
    """Three 3x3 convolutions and a maximum: one plane (B, 1, H, W) to (B, outputs, H / 4, W / 4).

    Source: Dai et al., WACV 2021.
    """
    return nn.Sequential(
        conv_norm(1, hidden, stride=2),
        nn.ReLU(inplace=True),
        conv_norm(hidden, hidden),
        nn.ReLU(inplace=True),
        conv_norm(hidden, outputs),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def residual_stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    """A number of `BasicBlock`, the first of which changes width and stride."""
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs) for _ in range(blocks - 1))
    )


def widen(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Transposed convolution to twice the height and width."""
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)


def enlarge(x: Tensor, factor: int = 2) -> Tensor:
    """Bilinear interpolation (B, C, H, W) to (B, C, factor * H, factor * W); corners are not aligned.

    With aligned corners, which some of the published code uses, the shift between the two grids would depend on the
    size of the image.
    """
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class ConvolutionalAttention(nn.Module):
    """CBAM: a gate per channel from the pooled map, then a gate per pixel from the pooled channels.

    The channel gate is a bottleneck of ``channels // 16`` units that sees mean and maximum over the map, and adds the
    two; the pixel gate a 7x7 convolution of mean and maximum over the channels. Maps (B, C, H, W) to the same.

    Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, sec. 3.
    """

    def __init__(self, channels: int) -> None:
        """Make the two gates."""
        super().__init__()
        hidden = channels // 16
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )
        self.pixel = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both gates."""
        pooled = self.channel(x.mean((2, 3), keepdim=True)) + self.channel(x.amax((2, 3), keepdim=True))
        x = x * torch.sigmoid(pooled)
        planes = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.pixel(planes))

    def initialise(self) -> None:
        """Xavier-normal kernels, drawn from torch's global generator.

        Kaiming's fan out would give the bottleneck of one to sixteen units kernels so large that the gates start shut.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)


class AttentiveBlock(BasicBlock):
    """A `BasicBlock` whose residual passes through `ConvolutionalAttention` before it is added (Li et al., TIP 2022).

    Maps (B, inputs, H, W) to (B, outputs, H, W), all values >= 0.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make the block."""
        super().__init__(inputs, outputs)
        self.second = nn.Sequential(self.second, ConvolutionalAttention(outputs))


def attentive_stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """A number of `AttentiveBlock`, the first of which changes the width."""
    return nn.Sequential(
        AttentiveBlock(inputs, outputs), *(AttentiveBlock(outputs, outputs) for _ in range(blocks - 1))
    )


def initialise(model: nn.Module, *last: nn.Conv2d) -> None:
    """Kaiming-normal kernels (fan out, ReLU) and last biases that give every pixel about the probability `PRIOR`.

    Targets cover less than a hundredth of a picture. A network that starts at one half spends its first steps on
    silencing the background (Lin et al., ICCV 2017, sec. 3.3).

    Args:
        model: the student; torch's global generator draws its kernels.
        last: the convolutions that make logits.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ConvolutionalAttention):
            module.initialise()
    for head in last:
        # Logits of spread one from the first step: a kernel near zero would pass no gradient on for dozens of steps.
        nn.init.normal_(head.weight, std=head.in_channels**-0.5)
        if head.bias is None:
            raise ValueError("the convolution that makes the logits needs a bias")
        nn.init.constant_(head.bias, math.log(PRIOR / (1 - PRIOR)))
    # Channels last is 1.3 to 1.6 times as fast on a CPU; kernels in that layout carry the activations along.
    nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)


def at_multiple(network: Callable[[Tensor], Tensor], images: Tensor, multiple: int) -> Tensor:
    """Run a network that needs sides divisible by ``multiple`` on images of any size.

    Args:
        network: maps (B, C, H, W) to (B, K, H, W).
        images: (B, C, H, W), H and W >= 1.
        multiple: the network's largest stride.

    Returns:
        (B, K, H, W): the last row and column are repeated up to the next multiple, and the surplus is cut off again.
    """
    height, width = images.shape[-2:]
    # An exporter would freeze whether there is something to pad or to cut if this were F.pad's replication and a slice.
    rows, columns = (
        torch.arange((side + multiple - 1) // multiple * multiple, device=images.device).clamp(max=side - 1)
        for side in (height, width)
    )
    maps = network(images[..., rows[:, None], columns])
    return F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]))
