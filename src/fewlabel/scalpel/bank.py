"""Experts on whole images, brought to one scale: the pixel-level prior of the teacher, and its controls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewlabel.core.errors import ModelError
from fewlabel.scalpel.operators import BlobResponse, DiffusionResidual, PatchContrast, RingTopHat

OPERATOR_NAMES = ("ring_top_hat", "patch_contrast", "blob_response", "diffusion_residual")
"""Channel order of every response and of every gate, also the names in reports."""

Experts = Literal["operators", "convolutions", "none"]
"""What looks at the image: the white-box operators, learned convolutions in their place (a control), or nothing."""

_AT_PIXELS: dict[str, Callable[[], nn.Module]] = dict(
    zip(OPERATOR_NAMES, (RingTopHat, PatchContrast, BlobResponse, DiffusionResidual), strict=True)
)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of operators as a tuple.

    Raises:
        ModelError: If there is none, one is unknown, or one is there twice.
    """
    if not names or len(set(names)) < len(names) or not set(names) <= set(OPERATOR_NAMES):
        raise ModelError(
            f"The operators are named {list(names)}; give one or more of {', '.join(OPERATOR_NAMES)}, none twice."
        )
    return tuple(names)


def compress(x: Tensor) -> Tensor:
    """Signed logarithm ``sign(x) log(1 + |x|)``: linear with slope 1 at 0, tames bright outliers; any shape."""
    # At 0 itself autograd would find slope 0, sign and |x| both having derivative 0 there.
    return torch.where(x == 0, x, torch.sign(x) * torch.log1p(x.abs()))


def reference_target(height: float = 5.0, sigma: float = 1.5, size: int = 41) -> Tensor:
    """A Gaussian target in the middle of an empty image, float32 (1, 1, size, size), ``sigma`` in pixels.

    Height 5 and sigma 1.5 stand for a clear point target: five standard deviations of the image above its background.
    """
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    profile = torch.exp(-0.5 * (offsets / sigma).square())
    return height * profile[:, None] * profile[None, :].reshape(1, 1, 1, size)


class Bank(nn.Module, ABC):
    """Base of all banks: responses of a standardised image, one per channel, in "heights of the reference target".

    Attributes:
        channels: Number of responses.
    """

    channels: int

    def forward(self, images: Tensor) -> Tensor:
        """Responses of standardised images.

        Args:
            images: float (B, 1, H, W), mean 0 and standard deviation 1 per image (`core.radiometry.standardise`).

        Returns:
            float (B, channels, H, W).

        Raises:
            ModelError: If the images do not have exactly one channel.
        """
        if images.ndim != 4 or images.shape[1] != 1:
            raise ModelError(
                f"The operator bank got a tensor of shape {tuple(images.shape)} but expects single-channel images "
                "(B, 1, H, W); convert colour images with Image.grey() first."
            )
        return self._respond(images)

    @abstractmethod
    def _respond(self, images: Tensor) -> Tensor:
        """The responses of checked images."""


class OperatorBank(Bank):
    """The white-box operators at pixel sizes.

    Rule: every operator's output is divided by its response to `reference_target` with the operator's initial scalars
    (a buffer, computed once, saved with the weights) and multiplied by the target's height, then compressed by
    ``sign(y) log(1 + |y|)``. So a point target of contrast a reads about log(1 + a) in all channels, and the scale
    depends neither on the batch nor on the data. Of the four responses the diffusion residual alone is signed.
    """

    scale: Tensor

    def __init__(self, names: Sequence[str] = OPERATOR_NAMES) -> None:
        """Operators with their pixel-level initial scalars; needs no random numbers.

        Args:
            names: Some of `OPERATOR_NAMES`, in the order of the channels. Leaving one out does not change another.

        Raises:
            ModelError: If there is no name, one is unknown, or one is there twice.
        """
        super().__init__()
        self.names = check_names(names)
        self.channels = len(self.names)
        self.operators = nn.ModuleList(_AT_PIXELS[name]() for name in self.names)
        target = reference_target()
        middle = target.shape[-1] // 2
        with torch.no_grad():
            peaks = [operator(target)[0, 0, middle, middle] for operator in self.operators]
        self.register_buffer("scale", torch.stack(peaks) / target.max())

    def _respond(self, images: Tensor) -> Tensor:
        responses = torch.cat([operator(images) for operator in self.operators], dim=1)
        return compress(responses / self.scale[:, None, None])


class ConvolutionBank(Bank):
    """Learned 3x3 convolutions in place of the operators: the control that asks what the operators' form is worth.

    Each channel is two plain 3x3 convolutions with a ReLU between them. The control is fair because all but the form is
    the same: it sits in the same place, sees the same image with the same continuation at the border, gives as many
    channels to the same adapter and head, and learns from the same losses in the same steps. It starts at the same
    scale, by the rule of `OperatorBank`: divided by its largest response to `reference_target` (a buffer), times the
    target's height, compressed; on an image without contrast it starts at 0. And it is not short of freedom: about 150
    weights per channel where an operator has one to four. What it lacks is what is tested: a known shape from the
    first step, and the reach that a formula gets without weights (5 pixels across here, 9 to 21 there; both are
    followed by a head that sees further).
    """

    hidden = 8  # convolutions per channel before the ReLU
    scale: Tensor

    def __init__(self, channels: int = len(OPERATOR_NAMES)) -> None:
        """Draw the weights of ``channels`` channels from torch's global generator.

        Raises:
            ModelError: If there is no channel.
        """
        super().__init__()
        if channels < 1:
            raise ModelError(f"The convolution bank got {channels} channels; give 1 or more.")
        self.channels = channels
        self.first = nn.Conv2d(1, channels * self.hidden, 3)
        self.second = nn.Conv2d(channels * self.hidden, channels, 3, groups=channels, bias=False)
        self.first.bias = nn.Parameter(torch.zeros(channels * self.hidden))
        target = reference_target()
        with torch.no_grad():
            peaks = self._convolve(target).abs().amax(dim=(0, 2, 3))
        self.register_buffer("scale", peaks / target.max())

    def _convolve(self, images: Tensor) -> Tensor:
        """Raw responses (B, channels, H, W)."""
        padded = functional.pad(images, (2, 2, 2, 2), mode="replicate")
        return self.second(functional.relu(self.first(padded)))

    def _respond(self, images: Tensor) -> Tensor:
        return compress(self._convolve(images) / self.scale[:, None, None])


class EmptyBank(Bank):
    """No response at all, for a teacher without any prior: (B, 0, H, W)."""

    channels = 0

    def _respond(self, images: Tensor) -> Tensor:
        return images[:, :0]


def make_bank(experts: Experts, operators: Sequence[str] = OPERATOR_NAMES) -> Bank:
    """Build the bank that a teacher asks for.

    Args:
        experts: What looks at the image. Convolutions draw their weights from torch's global generator.
        operators: Names of the operators in the order of the channels; convolutions are as many as these.

    Returns:
        The bank, untrained.

    Raises:
        ModelError: If the names are not some of `OPERATOR_NAMES`, each once.
    """
    names = check_names(operators)
    if experts == "operators":
        return OperatorBank(names)
    return ConvolutionBank(len(names)) if experts == "convolutions" else EmptyBank()
