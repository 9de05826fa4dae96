"""Gates over experts: one softmax from what the whole image looks like and what each token looks like."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Gate = Literal["learned", "random", "uniform"]
"""How gates come about: by training; from random weights that never train; or equal for all experts."""


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
        float scalar in [0, 1]; 1 for a single expert.
    """
    if weights.shape[1] == 1:
        return weights.new_ones(())
    entropy = -(weights * torch.log(weights.clamp_min(1e-12))).sum(dim=1)
    return (entropy.mean() / math.log(weights.shape[1])).clamp(0.0, 1.0)


class Router(nn.Module):
    """Dense two-level gate.

    The image-level softmax reads mean and standard deviation of every channel, the token-level softmax reads the token;
    the gate is their product, renormalised over the experts, which equals one softmax of the summed logits:
    ``g_e(p) = softmax_e(a_e(image) + t_e(token p))``. No expert is ever switched off, so every expert and the router
    itself keep a task gradient (with hard top-1 gates the router would get none). Starts uniform: all weights are 0.

    Two controls take the learning away. A random gate is drawn once; its weights are buffers, saved but never trained,
    and its input is detached, as the layer before it would otherwise learn to steer it. A uniform gate has no weights.
    """

    def __init__(
        self,
        channels: int,
        experts: int = 4,
        two_level: bool = True,
        gate: Gate = "learned",
        generator: torch.Generator | None = None,
    ) -> None:
        """Gate ``experts`` from tokens of ``channels`` channels.

        Args:
            channels: Channels of the tokens.
            experts: Number of experts, at least 1.
            two_level: Gate by image and token; otherwise by the image alone.
            gate: How the gates come about.
            generator: Draws the weights of a random gate, so that tokens of unit power give logits of unit variance at
                either level; the other gates need no random numbers.
        """
        super().__init__()
        self.experts = experts
        self.gate = gate
        uniform = gate == "uniform"
        self.image = None if uniform else nn.Linear(2 * channels, experts)
        self.token = None if uniform or not two_level else nn.Conv2d(channels, experts, kernel_size=1, bias=False)
        for layer in (self.image, self.token):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
                if gate == "random":
                    nn.init.normal_(layer.weight, std=channels**-0.5, generator=generator)
                    _fix(layer)

    def forward(self, tokens: Tensor) -> Gates:
        """Gates of float ``tokens`` (B, channels, h, w)."""
        if self.gate == "random":
            tokens = tokens.detach()
        if self.image is None:
            logits = tokens.new_zeros((tokens.shape[0], self.experts))
        else:
            variance, mean = torch.var_mean(tokens, dim=(2, 3), correction=0)
            logits = self.image(torch.cat((mean, torch.sqrt(variance + 1e-6)), dim=1))
        spread = logits[:, :, None, None].expand(-1, -1, *tokens.shape[-2:])
        if self.token is not None:
            spread = spread + self.token(tokens)
        return Gates(weights=torch.softmax(spread, dim=1), image=torch.softmax(logits, dim=1))


def _fix(layer: nn.Module) -> None:
    """Turn a layer's parameters into buffers: training does not see them, files still hold them."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
        layer.register_buffer(name, parameter.detach())
