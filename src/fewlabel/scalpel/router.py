"""Gates over experts: one softmax from what the whole image looks like and what each token looks like."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Gates(NamedTuple):
    """What a router decided: ``weights`` float (B, E, h, w), sum 1 over E, and ``image`` float (B, E), sum 1 over E."""

    weights: Tensor
    image: Tensor


def importance_cv2(weights: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' gate mass; scalar in [0, E - 1], 0 when all are used alike.

    Args:
        weights: float (B, E, h, w) or (B, E), gate weights.

    Source: the importance term of Shazeer et al., "Outrageously large neural networks", ICLR 2017, eq. 6-7.
    """
    importance = weights.transpose(0, 1).flatten(1).mean(dim=1)
    return importance.var(unbiased=False) / importance.mean().square()


def gate_entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the gates divided by log E: 1 = all experts equal at every token, 0 = one expert per token.

    Args:
        weights: float (B, E, h, w), sum 1 over E.

    Returns:
        float scalar in [0, 1].
    """
    entropy = -(weights * torch.log(weights.clamp_min(1e-12))).sum(dim=1)
    return (entropy.mean() / math.log(weights.shape[1])).clamp(0.0, 1.0)


class Router(nn.Module):
    """Dense two-level gate.

    The image-level softmax reads mean and standard deviation of every channel, the token-level softmax reads the token;
    the gate is their product, renormalised over the experts, which equals one softmax of the summed logits:
    ``g_e(p) = softmax_e(a_e(image) + t_e(token p))``. No expert is ever switched off, so every expert and the router
    itself keep a task gradient (with hard top-1 gates the router would get none). Starts uniform: all weights are 0.
    """

    def __init__(self, channels: int, experts: int = 4, two_level: bool = True) -> None:
        """Gate ``experts`` from tokens of ``channels`` channels; without ``two_level`` by the image alone."""
        super().__init__()
        self.image = nn.Linear(2 * channels, experts)
        self.token = nn.Conv2d(channels, experts, kernel_size=1, bias=False) if two_level else None
        for layer in (self.image, self.token):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.image.bias)

    def forward(self, tokens: Tensor) -> Gates:
        """Gates of float ``tokens`` (B, channels, h, w)."""
        variance, mean = torch.var_mean(tokens, dim=(2, 3), correction=0)
        logits = self.image(torch.cat((mean, torch.sqrt(variance + 1e-6)), dim=1))
        spread = logits[:, :, None, None].expand(-1, -1, *tokens.shape[-2:])
        if self.token is not None:
            spread = spread + self.token(tokens)
        return Gates(weights=torch.softmax(spread, dim=1), image=torch.softmax(logits, dim=1))
