"""Experts on token grids: the operators at token sizes, or learned convolutions as their control."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from fewlabel.scalpel.bank import Experts, check_names
from fewlabel.scalpel.operators import BlobResponse, DiffusionResidual, PatchContrast, RingTopHat

# A token covers several pixels, so that a target and its surroundings are fewer tokens than pixels across.
_AT_TOKENS: dict[str, Callable[[], nn.Module]] = {
    "ring_top_hat": lambda: RingTopHat(radii=(1, 2, 3)),
    "patch_contrast": lambda: PatchContrast(shifts=(1, 2, 3)),
    "blob_response": lambda: BlobResponse(sigmas=(0.8, 1.4), high=2.0),
    "diffusion_residual": lambda: DiffusionResidual(),
}


class SeparableConvolution(nn.Module):
    """A depthwise 3x3 convolution, a ReLU and a 1x1 convolution: the control for an operator on tokens.

    Like an operator it is local, continues the border by replication and gives 0 for tokens of 0; unlike one it may mix
    channels and learns ``channels * (9 + channels)`` weights where an operator has one to four.
    """

    def __init__(self, channels: int) -> None:
        """Draw the weights for tokens of ``channels`` channels from torch's global generator."""
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=1, padding_mode="replicate", groups=channels, bias=False
        )
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Response of float ``tokens`` (B, channels, h, w), same shape, signed."""
        return self.pointwise(functional.relu(self.depthwise(tokens)))


def token_experts(experts: Experts, operators: Sequence[str], channels: int) -> nn.ModuleList:
    """Build the experts of one level of a SAM encoder.

    Args:
        experts: What looks at the tokens. Convolutions draw their weights from torch's global generator.
        operators: Names of the operators, some of `OPERATOR_NAMES`; convolutions are as many as these.
        channels: Channels of the tokens.

    Returns:
        Modules from float (B, channels, h, w) to the same shape, any h, w >= 1, in the order of ``operators``; an empty
        list for "none".

    Raises:
        ModelError: If the names are not some of `OPERATOR_NAMES`, each once.
    """
    names = check_names(operators)
    if experts == "operators":
        return nn.ModuleList(_AT_TOKENS[name]() for name in names)
    if experts == "convolutions":
        return nn.ModuleList(SeparableConvolution(channels) for _ in names)
    return nn.ModuleList()
