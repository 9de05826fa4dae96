"""LoRA and Conv-LoRA on the attention of a frozen SAM encoder: what the operator adapter is compared with.

Sources: Hu et al., "LoRA", ICLR 2022, eq. 3; Zhong et al., "Convolution meets LoRA", ICLR 2024 (arXiv 2401.17868).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fewlabel.core.errors import ModelError
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.attach import Adapter, AdapterConfig, bottleneck, draw
from fewlabel.scalpel.router import Gate, Gates, Router

PROJECTIONS = ("qkv", "q_proj", "v_proj")  # one layer for all three in SAM, SAM-HQ, SAM 2 and MobileSAM, not in SAM 3
SCALES = (1, 2, 4)


def projections(block: nn.Module) -> dict[str, nn.Linear]:
    """The layers of a block that make queries and values, by name; none in a block without attention.

    Where one layer makes queries, keys and values, it is adapted as a whole.
    """
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS
    }


class LowRank(nn.Module):
    """LoRA of one linear layer: ``delta = B A x``, A uniform after Kaiming, B 0 at the start, alpha = rank."""

    def __init__(self, inputs: int, outputs: int, rank: int, generator: torch.Generator) -> None:
        """Update of rank ``rank`` for a layer from ``inputs`` to ``outputs`` channels; ``generator`` draws A."""
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor, batch: int) -> tuple[Tensor, Gates | None]:
        """What to add to the layer's output for float ``tokens`` (..., inputs); ``batch`` and gates are unused here."""
        return self.up(self.reduce(tokens)), None

    def reduce(self, tokens: Tensor) -> Tensor:
        """The low-rank tokens ``z = A x`` (..., rank) of ``tokens`` (..., inputs) of any float dtype."""
        return self.down(tokens.to(self.down.weight.dtype))


class ConvLowRank(LowRank):
    """Conv-LoRA of one linear layer: ``delta = B (z + sum_k g_k E_k(z))`` with ``z = A x`` on its grid.

    Expert k enlarges z k times, k = 1, 2, 4, applies a 3 × 3 convolution and GELU, and averages back. The published
    gate picks one expert with a weight of 1, through which no task gradient flows; ours weighs all experts by an
    image-level softmax, so that the router learns from the task.

    Where the block attends in windows, its linear layer sees windows: they are convolved one by one, each continued by
    zeros, while the gate is taken over all windows of an image.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, gate: Gate, generator: torch.Generator) -> None:
        """As `LowRank`; ``generator`` also draws the convolutions and a random ``gate``."""
        super().__init__(inputs, outputs, rank, generator)
        convolutions = [nn.Conv2d(rank, rank, 3, padding=1) for _ in SCALES]
        for convolution in convolutions:
            draw(convolution, generator)
        self.convolutions = nn.ModuleList(convolutions)
        self.router = Router(rank, len(SCALES), two_level=False, gate=gate, generator=generator)

    def forward(self, tokens: Tensor, batch: int) -> tuple[Tensor, Gates | None]:
        """What to add to the layer's output, and the gates.

        Args:
            tokens: float (B', h, w, inputs), or (B', h w, inputs) of square grids; B' = B where the block attends
                globally, else B times the windows of an image, image by image.
            batch: Number of images B.

        Returns:
            The shape of ``tokens`` with the output's channels, and the image-level gates.

        Raises:
            ModelError: If the tokens are not those of ``batch`` images on a grid.
        """
        side = math.isqrt(tokens.shape[1])
        grid = tokens.shape[1:3] if tokens.ndim == 4 else (side, side)
        if tokens.ndim not in (3, 4) or math.prod(grid) != math.prod(tokens.shape[1:-1]) or tokens.shape[0] % batch:
            raise ModelError(
                f"Conv-LoRA got tokens of shape {tuple(tokens.shape)} but expects (B, h, w, C) or square grids "
                f"(B, h w, C) with B a multiple of {batch} as in the responses; encode the same images."
            )
        low = self.reduce(tokens).reshape(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)
        windows = low.shape[0] // batch
        whole = low.unflatten(0, (batch, windows)).transpose(1, 2).flatten(2, 3)  # (B, rank, windows h, w)
        gates = self.router(whole)
        shares = gates.image.repeat_interleave(windows, dim=0)[:, :, None, None]
        mixed = low
        for index, (scale, convolution) in enumerate(zip(SCALES, self.convolutions, strict=True)):
            mixed = mixed + shares[:, index : index + 1] * _at_scale(low, scale, convolution)
        delta = self.up(mixed.permute(0, 2, 3, 1))
        return delta.reshape(*tokens.shape[:-1], -1), gates


def _at_scale(maps: Tensor, scale: int, convolution: nn.Module) -> Tensor:
    """GELU of a convolution of ``maps`` (B, C, h, w) enlarged ``scale`` times, averaged back to (B, C, h, w)."""
    if scale == 1:
        return functional.gelu(convolution(maps))
    large = functional.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
    return functional.avg_pool2d(functional.gelu(convolution(large)), scale)


class LoraAdapter(Adapter):
    """LoRA or Conv-LoRA on the attention of the chosen blocks; of those, blocks without attention are left out."""

    def __init__(self, segmenter: PromptableSegmenter, config: AdapterConfig, generator: torch.Generator) -> None:
        """Build updates for ``segmenter``'s encoder.

        Args:
            segmenter: Its blocks are looked at, not kept.
            config: Options; kind "lora" or "conv-lora".
            generator: Source of the initial weights.

        Raises:
            ModelError: If a wanted level is not one of the encoder's blocks, or none of them has attention.
        """
        super().__init__(segmenter.block_channels, config)
        found = {level: projections(segmenter.encoder_blocks[level]) for level in self.levels}
        self.levels = tuple(level for level in self.levels if found[level])
        if not self.levels:
            raise ModelError(
                f"The adapter {config.kind!r} needs attention but the blocks {list(found)} have none; name other "
                "levels or choose another kind of adapter."
            )
        self.layers = {level: _shapes(found[level]) for level in self.levels}
        self.updates = nn.ModuleList()
        for level in self.levels:
            for layer in found[level].values():
                inputs, outputs = layer.in_features, layer.out_features
                rank = bottleneck(config.rank, inputs)
                if config.kind == "conv-lora":
                    self.updates.append(ConvLowRank(inputs, outputs, rank, config.gate, generator))
                else:
                    self.updates.append(LowRank(inputs, outputs, rank, generator))
        if config.kind == "conv-lora":
            self.expert_names = tuple(f"convolution at scale {scale}" for scale in SCALES)

    def _hooks(
        self, blocks: Sequence[nn.Module], responses: Tensor, images: Tensor, keep_aspect: bool
    ) -> Iterator[RemovableHandle]:
        """One forward hook on each adapted layer."""
        updates = iter(self.updates)
        for level, layers in self.layers.items():
            present = projections(blocks[level])
            if _shapes(present) != layers:
                raise ModelError(
                    f"The adapter was built for attention layers {layers} in encoder block {level} but the segmenter "
                    f"has {_shapes(present)}; build it from this segmenter."
                )
            for number, layer in enumerate(present.values()):
                yield layer.register_forward_hook(self._hook((level, number), next(updates), len(responses)))

    def _hook(self, key: tuple[int, int], update: nn.Module, batch: int) -> Any:
        """The forward hook of one layer: adds the update to its output."""

        def adapt(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            delta, gates = update(inputs[0], batch)
            if gates is not None:
                self._trace[key] = gates
            return output + delta.to(output.dtype)

        return adapt


def _shapes(layers: Mapping[str, nn.Linear]) -> dict[str, tuple[int, ...]]:
    """Shape (outputs, inputs) of each layer's weight, by name."""
    return {name: tuple(layer.weight.shape) for name, layer in layers.items()}
