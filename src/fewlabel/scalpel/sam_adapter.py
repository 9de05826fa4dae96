"""An adapter in the style of SAM-Adapter: prompts from the high-passed image and the tokens, added to block inputs.

Source: Chen et al., "SAM-Adapter", ICCV workshops 2023, section 3.2. What is ours: the image is brought to the grid of
whatever block is adapted, and the tokens are normalised first, as their power grows from block to block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.attach import Adapter, AdapterConfig, bottleneck, check_tokens, draw, framed

RATE = 0.25  # share of the spectrum that the high-pass takes away
SAMPLES = 4  # means along each side of a cell that the prompt's convolution sees


def high_pass(images: Tensor, rate: float = RATE) -> Tensor:
    """Magnitude of images without their low frequencies.

    All frequencies below ``sqrt(rate) / 2`` cycles per pixel in both directions are removed: of a square image the
    central square of ``rate`` of its spectrum.

    Args:
        images: float (B, C, H, W).
        rate: Removed share of the spectrum, in [0, 1].

    Returns:
        float32 (B, C, H, W), >= 0, unit of ``images``; 0 for a flat image.
    """
    height, width = images.shape[-2:]
    limit = 0.5 * math.sqrt(rate)
    rows = torch.fft.fftfreq(height, device=images.device).abs()
    columns = torch.fft.rfftfreq(width, device=images.device)
    low = (rows[:, None] < limit) & (columns[None, :] < limit)
    spectrum = torch.fft.rfft2(images.float()).masked_fill(low, 0)
    return torch.fft.irfft2(spectrum, s=(height, width)).abs()


def input_channels(block: nn.Module) -> int:
    """Channels of the tokens that a block takes, which its first normalisation or convolution tells.

    Raises:
        ModelError: If the block has neither.
    """
    for module in block.modules():
        if isinstance(module, nn.LayerNorm):
            return int(module.normalized_shape[-1])
        if isinstance(module, nn.Conv2d):
            return int(module.in_channels)
    raise ModelError(
        f"The adapter 'sam-adapter' cannot tell how many channels a {type(block).__name__} takes, as it has neither "
        "normalisation nor convolution; choose another kind of adapter."
    )


class Prompter(nn.Module):
    """Prompts for all blocks of one width: ``P_i = Up(GELU(Lin_i(F_hf + F_emb)))``, Up shared and 0 at the start."""

    def __init__(self, channels: int, rank: int, blocks: int, generator: torch.Generator) -> None:
        """Prompts of ``channels`` channels through ``rank`` ones for ``blocks`` blocks; ``generator`` draws weights."""
        super().__init__()
        self.embed = nn.Linear(channels, rank)
        self.cells = nn.Conv2d(1, rank, SAMPLES, stride=SAMPLES)
        self.tune = nn.ModuleList(nn.Linear(rank, rank) for _ in range(blocks))
        self.up = nn.Linear(rank, channels)
        for layer in (self.embed, self.cells, *self.tune):
            draw(layer, generator)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, edges: Tensor, number: int) -> Tensor:
        """Prompt of one block.

        Args:
            tokens: float (B, h, w, C), what the block would take, of any float dtype.
            edges: float (B, 1, H, W) >= 0, the high-passed image over the whole frame.
            number: Which of the blocks, counted from 0.

        Returns:
            float (B, h, w, C), to be added to ``tokens``.
        """
        tokens = tokens.to(self.up.weight.dtype)
        height, width = tokens.shape[1:3]
        fine = functional.adaptive_avg_pool2d(edges, (SAMPLES * height, SAMPLES * width))
        content = self.embed(functional.layer_norm(tokens, tokens.shape[-1:]))
        hidden = self.tune[number](self.cells(fine).permute(0, 2, 3, 1) + content)
        return self.up(functional.gelu(hidden))


class PromptAdapter(Adapter):
    """Prompts in the style of SAM-Adapter for the chosen blocks."""

    def __init__(self, segmenter: PromptableSegmenter, config: AdapterConfig, generator: torch.Generator) -> None:
        """Build prompters for ``segmenter``'s encoder.

        Args:
            segmenter: Its blocks are looked at, not kept.
            config: Options; kind "sam-adapter".
            generator: Source of the initial weights.

        Raises:
            ModelError: If a wanted level is not one of the encoder's blocks.
        """
        super().__init__(segmenter.block_channels, config)
        self.widths = tuple(input_channels(segmenter.encoder_blocks[level]) for level in self.levels)
        self.prompters = nn.ModuleDict(
            {
                str(width): Prompter(width, bottleneck(config.rank, width), self.widths.count(width), generator)
                for width in dict.fromkeys(self.widths)
            }
        )

    def _hooks(
        self, blocks: Sequence[nn.Module], responses: Tensor, images: Tensor, keep_aspect: bool
    ) -> Iterator[RemovableHandle]:
        """One hook before each adapted block."""
        widths = tuple(input_channels(blocks[level]) for level in self.levels)
        if widths != self.widths:
            raise ModelError(
                f"The adapter was built for blocks that take {list(self.widths)} channels but those of the segmenter "
                f"take {list(widths)}; build it from this segmenter."
            )
        edges = framed(high_pass(images), keep_aspect)
        for index, level in enumerate(self.levels):
            yield blocks[level].register_forward_pre_hook(self._hook(index, edges))

    def _hook(self, index: int, edges: Tensor) -> Any:
        """The hook of level number ``index``: adds the prompt to the block's input."""
        level, width = self.levels[index], self.widths[index]
        prompter = self.prompters[str(width)]
        number = self.widths[:index].count(width)

        def adapt(_block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens = inputs[0]
            check_tokens(tokens, len(edges), level)
            return (tokens + prompter(tokens, edges, number).to(tokens.dtype), *inputs[1:])

        return adapt
