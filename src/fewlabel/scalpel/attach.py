"""What the adapters of a frozen SAM encoder share: options, the choice of blocks, hooks, and the last pass's gates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.router import Gate, Gates, gate_entropy, importance_cv2


class AdapterConfig(BaseModel):
    """Options of an adapter; `fewlabel.scalpel.adapter.make_adapter` builds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["experts", "lora", "conv-lora", "sam-adapter"] = Field(
        default="experts",
        description="experts: the hierarchical mixture. For comparison: lora and conv-lora on the attention's "
        "projections, and sam-adapter, prompts from the high-passed image.",
    )
    rank: int = Field(
        default=32, ge=1, description="Channels of the adapter's bottleneck; at most half the block's channels."
    )
    levels: Literal["auto"] | tuple[int, ...] = Field(
        default="auto", description="Encoder blocks to adapt, counted from 0; auto: see choose_levels."
    )
    gate: Gate = Field(
        default="learned",
        description="Gates of experts and conv-lora. As controls, random: drawn once and never trained; uniform: all "
        "experts alike.",
    )
    by_depth: bool = Field(
        default=True, description="Experts: a router per level; otherwise one router shared by all levels."
    )
    two_level: bool = Field(
        default=True, description="Experts: gates from image and token; otherwise from the image alone."
    )
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


def bottleneck(rank: int, channels: int) -> int:
    """Channels of the bottleneck of a layer of ``channels`` channels: ``rank``, at most half of them, at least 1."""
    return min(rank, max(channels // 2, 1))


def draw(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Draw a layer's weights normally with variance 1 / fan-in, so that unit power stays unit power; bias 0."""
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def framed(maps: Tensor, keep_aspect: bool) -> Tensor:
    """Continue maps of an image to what SAM's frame shows, over which its token grids lie.

    A squashing frame (SAM 2) is the image itself, stretched. An aspect-keeping frame (SAM) is the image in the upper
    left of a square, so the maps are continued by zeros to a square; for square images both agree.

    Args:
        maps: float (B, C, H, W) at image resolution.
        keep_aspect: Whether the frame keeps the aspect ratio and pads at the right and bottom.

    Returns:
        float (B, C, H', W').
    """
    height, width = maps.shape[-2:]
    if not keep_aspect or height == width:
        return maps
    side = max(height, width)
    return functional.pad(maps, (0, side - width, 0, side - height))


class Adapter(nn.Module, ABC):
    """Small trainable parts for chosen blocks of a frozen encoder; the encoder itself is neither edited nor owned.

    Use as ``with adapter.attached(segmenter, responses, images): embedding = segmenter.encode(...)``. The `state_dict`
    holds the adapter alone. Every adapter's last projection is zero at the start, so the encoder's output is then
    unchanged, bit for bit without autograd; with it, torch may choose another attention kernel, which differs in the
    last bits by itself.

    Attributes:
        config: The options.
        levels: Adapted encoder blocks, counted from 0, ascending.
        block_channels: Output channels of each block of the encoder that the adapter was built for.
        expert_names: What the router chooses among, in the order of the gates; empty without a router.
    """

    def __init__(self, block_channels: Sequence[int], config: AdapterConfig) -> None:
        """Choose the levels.

        Args:
            block_channels: Output channels of each encoder block, in order.
            config: Options.

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
        self.expert_names: tuple[str, ...] = ()
        self._attached = False
        self._trace: dict[tuple[int, int], Gates] = {}  # by level and router of the level

    def __getstate__(self) -> dict[str, Any]:
        """Leave the last forward's gates, which belong to an autograd graph, and any attachment out of copies."""
        return {**super().__getstate__(), "_trace": {}, "_attached": False}

    @abstractmethod
    def _hooks(
        self, blocks: Sequence[nn.Module], responses: Tensor, images: Tensor, keep_aspect: bool
    ) -> Iterator[RemovableHandle]:
        """Register the hooks one by one, yielding each handle; arguments as `attached` checked them."""

    @contextmanager
    def attached(self, segmenter: PromptableSegmenter, responses: Tensor, images: Tensor) -> Iterator[None]:
        """Adapt every forward pass of ``segmenter``'s encoder inside the context; leave no trace in it afterwards.

        Args:
            segmenter: The promptable segmenter whose `block_channels` this adapter was built for.
            responses: float (B, E, H, W), the bank's responses of the very images given to `encode`; E may be 0 where
                the adapter reads no responses.
            images: float (B, 1, H, W), those images, standardised.

        Raises:
            ModelError: If the segmenter's blocks are others, if responses and images do not fit each other or the
                adapter, or if the adapter is attached already.
        """
        if self._attached:
            raise ModelError("The adapter is attached already; leave the first `attached` block before the next one.")
        if tuple(segmenter.block_channels) != self.block_channels:
            raise ModelError(
                f"The adapter was built for blocks of {list(self.block_channels)} channels but the segmenter has "
                f"{list(segmenter.block_channels)}; build it from this segmenter's block_channels."
            )
        if responses.ndim != 4 or images.shape != (len(responses), 1, *responses.shape[2:]):
            raise ModelError(
                f"The adapter got responses of shape {tuple(responses.shape)} and images of shape "
                f"{tuple(images.shape)} but expects (B, E, H, W) and (B, 1, H, W); give the standardised images and "
                "what the bank makes of them."
            )
        frame = segmenter.frame_of((responses.shape[2], responses.shape[3]))
        keep_aspect = frame.content != (frame.side, frame.side)
        self._trace = {}
        handles = []
        try:
            self._attached = True
            for handle in self._hooks(segmenter.encoder_blocks, responses, images, keep_aspect):
                handles.append(handle)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._attached = False

    def _last_gates(self) -> dict[int, list[Gates]]:
        """Gates of the last forward pass by level; empty without a router."""
        if self.expert_names and not self._trace:
            raise ModelError("The adapter has no gates yet; encode images inside its `attached` context first.")
        last: dict[int, list[Gates]] = {}
        for (level, _), gates in self._trace.items():
            last.setdefault(level, []).append(gates)
        return last

    @property
    def gates(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Gates of the last forward pass by block: (image-level gate (B, E), final gate averaged over tokens (B, E)).

        Both sum to 1 over the experts, in the order of `expert_names`, without gradient; mean over the routers of a
        block that has several; empty without a router.

        Raises:
            ModelError: If there was no forward pass yet.
        """
        return {
            level: (
                torch.stack([gates.image.detach() for gates in routers]).mean(dim=0),
                torch.stack([gates.weights.detach().mean(dim=(2, 3)) for gates in routers]).mean(dim=0),
            )
            for level, routers in self._last_gates().items()
        }

    def balance_loss(self) -> Tensor:
        """Balance loss of the last forward pass: ``balance`` times the mean over routers of `importance_cv2`; scalar.

        It is 0 without a router.

        Raises:
            ModelError: If there is a router but was no forward pass yet.
        """
        terms = [importance_cv2(gates.weights) for routers in self._last_gates().values() for gates in routers]
        if not terms:
            return next(self.parameters()).new_zeros(())
        return self.config.balance * torch.stack(terms).mean()

    def entropy(self) -> dict[int, float]:
        """Gate entropy of the last forward pass by block, in [0, 1] (`gate_entropy`), for logs; empty without a router.

        Raises:
            ModelError: If there is a router but was no forward pass yet.
        """
        return {
            level: sum(float(gate_entropy(gates.weights.detach())) for gates in routers) / len(routers)
            for level, routers in self._last_gates().items()
        }


def check_tokens(tokens: Tensor, batch: int, level: int) -> None:
    """Refuse what a block hands over if it is not tokens (batch, h, w, C).

    Raises:
        ModelError: If the shape is another.
    """
    if tokens.ndim != 4 or tokens.shape[0] != batch:
        raise ModelError(
            f"Encoder block {level} gave tokens of shape {tuple(tokens.shape)} but the adapter expects "
            f"(B, h, w, C) with B = {batch} as in the responses; encode the same images."
        )
