"""Building blocks that the students share."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIOR = 0.01  # probability of "target" that an untrained student gives to every pixel


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


def initialise(model: nn.Module, last: nn.Conv2d) -> None:
    """Kaiming-normal kernels (fan out, ReLU) and a last bias that gives every pixel about the probability `PRIOR`.

    Targets cover less than a hundredth of a picture. A network that starts at one half spends its first steps on
    silencing the background (Lin et al., ICCV 2017, sec. 3.3).

    Args:
        model: the student; torch's global generator draws its kernels.
        last: the convolution that makes the logits.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # Logits of spread one from the first step: a kernel near zero would pass no gradient on for dozens of steps.
    nn.init.normal_(last.weight, std=last.in_channels**-0.5)
    if last.bias is None:
        raise ValueError("the convolution that makes the logits needs a bias")
    nn.init.constant_(last.bias, math.log(PRIOR / (1 - PRIOR)))
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
