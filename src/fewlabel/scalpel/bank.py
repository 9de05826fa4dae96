"""The four operators on whole images, brought to one scale: the pixel-level prior of the teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewlabel.core.errors import ModelError
from fewlabel.scalpel.operators import BlobResponse, DiffusionResidual, PatchContrast, RingTopHat

OPERATOR_NAMES = ("ring_top_hat", "patch_contrast", "blob_response", "diffusion_residual")
"""Channel order of every response and of every gate, also the names in reports."""


def compress(x: Tensor) -> Tensor:
    """Signed logarithm ``sign(x) log(1 + |x|)``: linear with slope 1 at 0, tames bright outliers; any shape."""
    return torch.sign(x) * torch.log1p(x.abs())


def reference_target(height: float = 5.0, sigma: float = 1.5, size: int = 41) -> Tensor:
    """A Gaussian target in the middle of an empty image, float32 (1, 1, size, size), ``sigma`` in pixels.

    Height 5 and sigma 1.5 stand for a clear point target: five standard deviations of the image above its background.
    """
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    profile = torch.exp(-0.5 * (offsets / sigma).square())
    return height * profile[:, None] * profile[None, :].reshape(1, 1, 1, size)


class OperatorBank(nn.Module):
    """Four operator responses of a standardised image, each in "heights of the reference target".

    Rule: every operator's output is divided by its response to `reference_target` with the operator's initial scalars
    (a buffer, computed once, saved with the weights) and multiplied by the target's height, then compressed by
    ``sign(y) log(1 + |y|)``. So a point target of contrast a reads about log(1 + a) in all four channels, and the
    scale depends neither on the batch nor on the data.
    """

    scale: Tensor

    def __init__(self) -> None:
        """Operators with their pixel-level initial scalars; needs no random numbers."""
        super().__init__()
        self.operators = nn.ModuleList([RingTopHat(), PatchContrast(), BlobResponse(), DiffusionResidual()])
        target = reference_target()
        middle = target.shape[-1] // 2
        with torch.no_grad():
            peaks = [operator(target)[0, 0, middle, middle] for operator in self.operators]
        self.register_buffer("scale", torch.stack(peaks) / target.max())

    def forward(self, images: Tensor) -> Tensor:
        """Responses of standardised images.

        Args:
            images: float (B, 1, H, W), mean 0 and standard deviation 1 per image (`core.radiometry.standardise`).

        Returns:
            float (B, 4, H, W) in the order of `OPERATOR_NAMES`; channels 0 to 2 are >= 0, channel 3 is signed.

        Raises:
            ModelError: If the images do not have exactly one channel.
        """
        if images.ndim != 4 or images.shape[1] != 1:
            raise ModelError(
                f"The operator bank got a tensor of shape {tuple(images.shape)} but expects single-channel images "
                "(B, 1, H, W); convert colour images with Image.grey() first."
            )
        responses = torch.cat([operator(images) for operator in self.operators], dim=1)
        return compress(responses / self.scale[:, None, None])
