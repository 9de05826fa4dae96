"""Hierarchical mixture-of-experts adapter: operators inside a frozen SAM encoder, attached by forward hooks.

Our own design after Scalpel-SAM (arXiv 2512.22483), whose adapter is not public. Both readings of "hierarchical"
are built in: a router of its own at every level of the encoder (by depth), and a gate with an image and a token level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.bank import OPERATOR_NAMES, compress
from fewlabel.scalpel.operators import BlobResponse, DiffusionResidual, PatchContrast, RingTopHat
from fewlabel.scalpel.router import Gates, Router, gate_entropy, importance_cv2


class AdapterConfig(BaseModel):
    """Options of `HierarchicalAdapter`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(
        default=32, ge=1, description="Channels of the adapter's bottleneck; at most half the block's channels."
    )
    levels: Literal["auto"] | tuple[int, ...] = Field(
        default="auto", description="Encoder blocks to adapt, counted from 0; auto: see choose_levels."
    )
    by_depth: bool = Field(default=True, description="A router per level; otherwise one router shared by all levels.")
    two_level: bool = Field(default=True, description="Gates from image and token; otherwise from the image alone.")
    balance: float = Field(
        default=0.01, ge=0.0, description="Weight of the balance loss (squared variation of expert use)."
    )


def choose_levels(block_channels: Sequence[int]) -> tuple[int, ...]:
    """Blocks to adapt: of a hierarchical encoder the last block of each width, of a plain ViT four evenly spaced ones.

    A plain ViT of n blocks gives the ends of its four quarters (2, 5, 8, 11 of 12), or every block where n < 4.
    """
    count = len(block_channels)
    if len(set(block_channels)) > 1:
        return tuple(i for i in range(count) if i + 1 == count or block_channels[i + 1] != block_channels[i])
    return tuple(sorted({max(round((quarter + 1) * count / 4), 1) - 1 for quarter in range(4)}))


def prior_tokens(responses: Tensor, grid: tuple[int, int], keep_aspect: bool) -> Tensor:
    """Pool pixel responses onto the token grid of SAM's frame.

    The grid covers the frame. A squashing frame (SAM 2) is the image itself, stretched. An aspect-keeping frame (SAM)
    is the image in the upper left of a square, so the responses are first continued by zeros to a square; for square
    images both agree. Cell mean and cell maximum are both kept: a target of three pixels drowns in the mean of a cell.

    Args:
        responses: float (B, E, H, W) at image resolution.
        grid: Token rows and columns (h, w).
        keep_aspect: Whether the frame keeps the aspect ratio and pads at the right and bottom.

    Returns:
        float (B, 2 E, h, w): the E means, then the E maxima.
    """
    height, width = responses.shape[-2:]
    if keep_aspect and height != width:
        side = max(height, width)
        responses = functional.pad(responses, (0, side - width, 0, side - height))
    mean = functional.adaptive_avg_pool2d(responses, grid)
    return torch.cat((mean, functional.adaptive_max_pool2d(responses, grid)), dim=1)


class TokenExperts(nn.Module):
    """The four operators on token grids, at token sizes, each brought to unit power per image.

    Every output is divided by its root mean square over the image (channels and tokens together, which keeps the
    contrast between tokens and between channels) and compressed; a per-channel gain follows. An expert that finds
    nothing stays at 0.
    """

    def __init__(self, channels: int) -> None:
        """Experts for tokens of ``channels`` channels; needs no random numbers."""
        super().__init__()
        self.operators = nn.ModuleList(
            [
                RingTopHat(radii=(1, 2, 3)),
                PatchContrast(shifts=(1, 2, 3)),
                BlobResponse(sigmas=(0.8, 1.4), high=2.0),
                DiffusionResidual(),
            ]
        )
        self.gain = nn.Parameter(torch.ones(len(self.operators), channels, 1, 1))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Outputs of float ``tokens`` (B, channels, h, w): one tensor of that shape per operator."""
        outputs = []
        for operator, gain in zip(self.operators, self.gain, strict=True):
            response = operator(tokens)
            power = response.square().mean(dim=(1, 2, 3), keepdim=True)
            outputs.append(gain * compress(response * torch.rsqrt(power + 1e-6)))
        return outputs


class AdapterLevel(nn.Module):
    """One level: ``h + Up(sum_e g_e E_e(z) + P)``, ``z = Down(LN(h))``, P the projected pixel prior, Up 0 at start."""

    def __init__(self, channels: int, rank: int, generator: torch.Generator) -> None:
        """Adapter of ``rank`` bottleneck channels for a block of ``channels`` output channels.

        ``generator`` draws the Down and prior weights: normal, variance 1 / fan-in, so that tokens have unit power.
        """
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.down = nn.Linear(channels, rank)
        self.experts = TokenExperts(rank)
        self.prior = nn.Conv2d(2 * len(OPERATOR_NAMES), rank, kernel_size=1)
        self.up = nn.Linear(rank, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        for layer in (self.down, self.prior):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, prior: Tensor, router: Router) -> tuple[Tensor, Gates]:
        """Adapt one block's output.

        Args:
            hidden: float (B, h, w, C), the block's output, of any float dtype.
            prior: float (B, 8, h, w) from `prior_tokens`.
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


class HierarchicalAdapter(nn.Module):
    """Adapters for chosen blocks of a frozen encoder; the encoder itself is neither edited nor owned.

    Use as ``with adapter.attached(segmenter, responses): embedding = segmenter.encode(images)``. The `state_dict`
    holds the adapter alone. Up is zero at the start, so the encoder's output is then unchanged, bit for bit without
    autograd; with it, torch may choose another attention kernel, which differs in the last bits by itself. With
    by_depth off, all levels share one router and therefore the smallest level's rank.
    """

    def __init__(self, block_channels: Sequence[int], config: AdapterConfig, generator: torch.Generator) -> None:
        """Build the levels.

        Args:
            block_channels: Output channels of each encoder block, in order.
            config: Options.
            generator: Source of the initial weights of the Down and prior projections.

        Raises:
            ModelError: If the encoder has no block, or a wanted level is not one of its blocks.
        """
        super().__init__()
        count = len(block_channels)
        if count == 0:
            raise ModelError(
                "The adapter got an encoder without blocks; expected at least one block with its channels."
            )
        levels = choose_levels(block_channels) if config.levels == "auto" else tuple(sorted(set(config.levels)))
        if not levels or min(levels) < 0 or max(levels) >= count:
            raise ModelError(
                f"The adapter's levels are {list(levels)} but the encoder has blocks 0 to {count - 1}; "
                "name blocks in that range or set levels to auto."
            )
        self.config = config
        self.levels = levels
        self.block_channels = tuple(block_channels)
        ranks = [min(config.rank, max(block_channels[level] // 2, 1)) for level in levels]
        if not config.by_depth:
            ranks = [min(ranks)] * len(ranks)
        self.adapters = nn.ModuleList(
            [AdapterLevel(block_channels[level], rank, generator) for level, rank in zip(levels, ranks, strict=True)]
        )
        routers = ranks if config.by_depth else ranks[:1]
        self.routers = nn.ModuleList([Router(rank, len(OPERATOR_NAMES), config.two_level) for rank in routers])
        self._attached = False
        self._trace: dict[int, Gates] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the last forward's gates, which belong to an autograd graph, and any attachment out of copies."""
        return {**super().__getstate__(), "_trace": {}, "_attached": False}

    @contextmanager
    def attached(self, segmenter: PromptableSegmenter, responses: Tensor) -> Iterator[None]:
        """Adapt every forward pass of ``segmenter``'s encoder inside the context; leave no trace in it afterwards.

        Args:
            segmenter: The promptable segmenter whose `block_channels` this adapter was built for.
            responses: float (B, 4, H, W), the `OperatorBank`'s responses of the very images given to `encode`.

        Raises:
            ModelError: If the segmenter's blocks are others, if the responses do not fit the images, or if the adapter
                is attached already.
        """
        if self._attached:
            raise ModelError("The adapter is attached already; leave the first `attached` block before the next one.")
        if tuple(segmenter.block_channels) != self.block_channels:
            raise ModelError(
                f"The adapter was built for blocks of {list(self.block_channels)} channels but the segmenter has "
                f"{list(segmenter.block_channels)}; build it from this segmenter's block_channels."
            )
        if responses.ndim != 4 or responses.shape[1] != len(OPERATOR_NAMES):
            raise ModelError(
                f"The adapter got responses of shape {tuple(responses.shape)} but expects (B, {len(OPERATOR_NAMES)}, "
                "H, W); compute them with OperatorBank."
            )
        frame = segmenter.frame_of((responses.shape[2], responses.shape[3]))
        keep_aspect = frame.content != (frame.side, frame.side)
        blocks = segmenter.encoder_blocks
        self._trace = {}
        handles = []
        try:
            self._attached = True
            for index, level in enumerate(self.levels):
                handles.append(blocks[level].register_forward_hook(self._hook(index, responses, keep_aspect)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._attached = False

    def _hook(self, index: int, responses: Tensor, keep_aspect: bool) -> Any:
        """The forward hook of level number ``index``: replaces the block's tokens by the adapted ones."""
        level = self.levels[index]

        def adapt(_block: nn.Module, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.ndim != 4 or hidden.shape[0] != responses.shape[0]:
                raise ModelError(
                    f"Encoder block {level} gave tokens of shape {tuple(hidden.shape)} but the adapter expects "
                    f"(B, h, w, C) with B = {responses.shape[0]} as in the responses; encode the same images."
                )
            prior = prior_tokens(responses, (hidden.shape[1], hidden.shape[2]), keep_aspect)
            router = self.routers[index if self.config.by_depth else 0]
            adapted, self._trace[level] = self.adapters[index](hidden, prior, router)
            return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

        return adapt

    def _last_gates(self) -> dict[int, Gates]:
        if not self._trace:
            raise ModelError("The adapter has no gates yet; encode images inside its `attached` context first.")
        return self._trace

    @property
    def gates(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Gates of the last forward pass by block: (image-level gate (B, 4), final gate averaged over tokens (B, 4)).

        Both sum to 1 over the experts, in the order of `OPERATOR_NAMES`, without gradient.

        Raises:
            ModelError: If there was no forward pass yet.
        """
        last = self._last_gates()
        return {level: (gates.image.detach(), gates.weights.detach().mean(dim=(2, 3))) for level, gates in last.items()}

    def balance_loss(self) -> Tensor:
        """Balance loss of the last forward pass: ``balance`` times the mean over levels of `importance_cv2`; scalar.

        Raises:
            ModelError: If there was no forward pass yet.
        """
        terms = [importance_cv2(gates.weights) for gates in self._last_gates().values()]
        return self.config.balance * torch.stack(terms).mean()

    def entropy(self) -> dict[int, float]:
        """Gate entropy of the last forward pass by block, in [0, 1] (`gate_entropy`), for logs.

        Raises:
            ModelError: If there was no forward pass yet.
        """
        return {level: float(gate_entropy(gates.weights.detach())) for level, gates in self._last_gates().items()}
