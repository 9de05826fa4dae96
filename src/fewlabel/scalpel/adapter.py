"""Hierarchical mixture-of-experts adapter: operators inside a frozen SAM encoder, attached by forward hooks.

Our own design after Scalpel-SAM (arXiv 2512.22483), whose adapter is not public. Both readings of "hierarchical"
are built in: a router of its own at every level of the encoder (by depth), and a gate with an image and a token level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.attach import (
    Adapter,
    AdapterConfig,
    bottleneck,
    check_tokens,
    choose_levels,
    draw,
    framed,
)
from fewlabel.scalpel.bank import Experts, compress
from fewlabel.scalpel.experts import token_experts
from fewlabel.scalpel.lora import LoraAdapter
from fewlabel.scalpel.router import Gates, Router
from fewlabel.scalpel.sam_adapter import PromptAdapter

__all__ = ["Adapter", "AdapterConfig", "HierarchicalAdapter", "choose_levels", "make_adapter"]


def prior_tokens(responses: Tensor, grid: tuple[int, int], keep_aspect: bool) -> Tensor:
    """Pool pixel responses onto the token grid of SAM's frame.

    Cell mean and cell maximum are both kept: a target of three pixels drowns in the mean of a cell.

    Args:
        responses: float (B, E, H, W) at image resolution.
        grid: Token rows and columns (h, w); the grid covers the frame, see `framed`.
        keep_aspect: Whether the frame keeps the aspect ratio and pads at the right and bottom.

    Returns:
        float (B, 2 E, h, w): the E means, then the E maxima.
    """
    responses = framed(responses, keep_aspect)
    mean = functional.adaptive_avg_pool2d(responses, grid)
    return torch.cat((mean, functional.adaptive_max_pool2d(responses, grid)), dim=1)


class TokenExperts(nn.Module):
    """Experts on token grids, each brought to unit power per image.

    Every output is divided by its root mean square over the image (channels and tokens together, which keeps the
    contrast between tokens and between channels) and compressed; a per-channel gain follows. An expert that finds
    nothing stays at 0.
    """

    def __init__(self, experts: nn.ModuleList, channels: int) -> None:
        """Normalise ``experts``, each from float (B, channels, h, w) to the same shape."""
        super().__init__()
        self.operators = experts  # under this name, whatever they are, in saved weights
        self.gain = nn.Parameter(torch.ones(len(experts), channels, 1, 1))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Outputs of float ``tokens`` (B, channels, h, w): one tensor of that shape per expert."""
        outputs = []
        for operator, gain in zip(self.operators, self.gain, strict=True):
            response = operator(tokens)
            power = response.square().mean(dim=(1, 2, 3), keepdim=True)
            outputs.append(gain * compress(response * torch.rsqrt(power + 1e-6)))
        return outputs


class AdapterLevel(nn.Module):
    """One level: ``h + Up(sum_e g_e E_e(z) + P)``, ``z = Down(LN(h))``, P the projected pixel prior, Up 0 at start."""

    def __init__(
        self, width: int, rank: int, experts: nn.ModuleList, channels: int, generator: torch.Generator
    ) -> None:
        """Build the level.

        Args:
            width: Output channels of the block.
            rank: Channels of the bottleneck.
            experts: Maps of float (B, rank, h, w) to the same shape.
            channels: Responses of the bank.
            generator: Draws the Down and prior weights, and those of convolutions among the experts.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, rank)
        self.experts = TokenExperts(experts, rank)
        self.prior = nn.Conv2d(2 * channels, rank, kernel_size=1)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        for layer in (self.down, self.prior, *experts.modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                draw(layer, generator)

    def forward(self, hidden: Tensor, prior: Tensor, router: Router) -> tuple[Tensor, Gates]:
        """Adapt one block's output.

        Args:
            hidden: float (B, h, w, C), the block's output, of any float dtype.
            prior: float (B, 2 E, h, w) from `prior_tokens`.
            router: The level's router.

        Returns:
            The adapted tokens (B, h, w, C) in the dtype of ``hidden``, and the gates.
        """
        tokens = self.down(self.norm(hidden.to(self.down.weight.dtype))).permute(0, 3, 1, 2)
        gates = router(tokens)
        mixed = self.prior(prior)
        for index, output in enumerate(self.experts(tokens)):
            mixed = mixed + gates.weights[:, index : index + 1] * output
        return hidden + self.up(mixed.permute(0, 2, 3, 1)).to(hidden.dtype), gates


class HierarchicalAdapter(Adapter):
    """The mixture of experts for the chosen blocks.

    With by_depth off, all levels share one router and therefore the smallest level's rank.
    """

    def __init__(
        self,
        block_channels: Sequence[int],
        config: AdapterConfig,
        experts: Experts,
        operators: Sequence[str],
        channels: int,
        generator: torch.Generator,
    ) -> None:
        """Build the levels.

        Args:
            block_channels: Output channels of each encoder block, in order.
            config: Options; kind "experts".
            experts: What the experts are.
            operators: Names of the operators; convolutions are as many as these.
            channels: Responses of the bank.
            generator: Source of the initial weights of projections, convolutions and random gates.

        Raises:
            ModelError: If the encoder has no block, a wanted level is not one of its blocks, or there are no experts.
        """
        super().__init__(block_channels, config)
        if experts == "none":
            raise ModelError(
                "The adapter of kind 'experts' got experts 'none'; set experts to operators or convolutions, choose "
                "another kind of adapter, or leave the adapter out."
            )
        self.channels = channels
        self.expert_names = tuple(
            name if experts == "operators" else f"convolution {number}" for number, name in enumerate(operators, 1)
        )
        ranks = [bottleneck(config.rank, block_channels[level]) for level in self.levels]
        if not config.by_depth:
            ranks = [min(ranks)] * len(ranks)
        self.adapters = nn.ModuleList(
            AdapterLevel(block_channels[level], rank, token_experts(experts, operators, rank), channels, generator)
            for level, rank in zip(self.levels, ranks, strict=True)
        )
        routers = ranks if config.by_depth else ranks[:1]
        self.routers = nn.ModuleList(
            Router(rank, len(self.expert_names), config.two_level, config.gate, generator) for rank in routers
        )

    def _hooks(
        self, blocks: Sequence[nn.Module], responses: Tensor, images: Tensor, keep_aspect: bool
    ) -> Iterator[RemovableHandle]:
        """One hook after each adapted block."""
        if responses.shape[1] != self.channels:
            raise ModelError(
                f"The adapter got responses of shape {tuple(responses.shape)} but expects (B, {self.channels}, H, W); "
                "compute them with the bank that it was built for."
            )
        for index, level in enumerate(self.levels):
            yield blocks[level].register_forward_hook(self._hook(index, responses, keep_aspect))

    def _hook(self, index: int, responses: Tensor, keep_aspect: bool) -> Any:
        """The forward hook of level number ``index``: replaces the block's tokens by the adapted ones."""
        level = self.levels[index]

        def adapt(_block: nn.Module, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            check_tokens(hidden, len(responses), level)
            prior = prior_tokens(responses, (hidden.shape[1], hidden.shape[2]), keep_aspect)
            router = self.routers[index if self.config.by_depth else 0]
            adapted, self._trace[level, 0] = self.adapters[index](hidden, prior, router)
            return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

        return adapt


def make_adapter(
    config: AdapterConfig,
    segmenter: PromptableSegmenter,
    experts: Experts,
    operators: Sequence[str],
    channels: int,
    generator: torch.Generator,
) -> Adapter:
    """Build the adapter that ``config`` names.

    Args:
        config: Options.
        segmenter: SAM; its blocks are looked at, not kept.
        experts: What the experts of kind "experts" are; the other kinds have no use for it.
        operators: Names of the operators; convolutions are as many as these.
        channels: Responses of the bank, E of what `Adapter.attached` is given.
        generator: Source of the initial weights: the same seed gives the same adapter.

    Returns:
        The adapter on the CPU; until it is trained, it leaves SAM's output as it is.

    Raises:
        ModelError: If the encoder has no blocks of that kind, or kind "experts" is asked for without experts.
    """
    if config.kind == "sam-adapter":
        return PromptAdapter(segmenter, config, generator)
    if config.kind in ("lora", "conv-lora"):
        return LoraAdapter(segmenter, config, generator)
    return HierarchicalAdapter(segmenter.block_channels, config, experts, operators, channels, generator)
