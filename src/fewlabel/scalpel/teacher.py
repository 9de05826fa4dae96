"""The expert teacher: a frozen SAM with operator adapters, its prompt-free mask decoder, and a full-resolution head.

Our own design after Scalpel-SAM (arXiv 2512.22483), whose network is not public:

    priors   = operator bank of the image                              at every pixel
    features = frozen SAM encoder with the adapter's experts in it      at SAM's grids
    masks    = SAM's mask decoder without any prompt                    at SAM's mask size
    logits   = small U-shaped head on [image, priors], into which features and masks are fused at strides 2 and 4

SAM alone works at strides of 2 to 16 pixels; a target of 2 × 2 pixels lives in the head's stride-1 path.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from fewlabel.core.errors import DataError, ModelError
from fewlabel.core.files import read_json
from fewlabel.core.radiometry import to_unit
from fewlabel.sam.families import load
from fewlabel.sam.promptable import PromptableSegmenter
from fewlabel.scalpel.adapter import AdapterConfig, HierarchicalAdapter, choose_levels
from fewlabel.scalpel.bank import OPERATOR_NAMES, OperatorBank
from fewlabel.scalpel.tiles import TILE
from fewlabel.training.checkpoint import load_weights, weights_sha256
from fewlabel.training.loop import WEIGHTS

CARD = "teacher.json"
PRIOR_LOGIT = -4.0  # targets cover about a pixel in a thousand; starting there spares the first steps
MASK_SCALE = 0.1  # SAM's mask logits reach tens
UNUSED = ("iou_prediction_head", "pred_obj_score_head")  # parts of SAM's decoder that no logit depends on


class TeacherConfig(BaseModel):
    """What the teacher is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sam: str = Field(default="nano", description="A name from `fewlabel sam list`, a checkpoint's folder, or a hub id.")
    allow_sam3: bool = Field(default=False, description="Agree to the licence of SAM 3, which is not Apache-2.0.")
    adapter: AdapterConfig | None = Field(
        default=AdapterConfig(), description="Options of the operator adapter; none leaves SAM's encoder as it is."
    )
    train_decoder: bool = Field(default=True, description="Train SAM's mask decoder; otherwise it stays frozen.")
    width: int = Field(default=16, ge=4, multiple_of=4, description="Channels of the head at full resolution.")
    projected: int = Field(default=16, ge=1, description="Channels that each of SAM's feature maps is projected to.")
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights.")


class Block(nn.Module):
    """Two 3 × 3 convolutions with group normalisation and a shortcut; the first may halve the resolution.

    Groups, not batches, are normalised: rendered and recorded images share a batch but not their statistics.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Map ``inputs`` to ``outputs`` channels (a multiple of 4) at 1 / ``stride`` of the resolution."""
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(4, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        x = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(x)))


class Projection(nn.Module):
    """A feature map of SAM, normalised per image, projected to few channels and resampled to a grid of the head."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Project ``inputs`` to ``outputs`` channels."""
        super().__init__()
        self.norm = nn.GroupNorm(1, inputs)
        self.project = nn.Conv2d(inputs, outputs, 1)

    def forward(self, feature: Tensor, size: Sequence[int]) -> Tensor:
        """Float (B, inputs, h, w) to (B, outputs, *size), bilinear."""
        # Maps come as views of (B, h, w, C); group_norm crashes in the backward pass of such layouts (torch 2.13).
        projected = self.project(self.norm(feature.contiguous()))
        return F.interpolate(projected, size=tuple(size), mode="bilinear", align_corners=False)


class FusionHead(nn.Module):
    """U-shaped network over strides 1, 2 and 4 that takes in SAM's features where their own resolution belongs.

    A map of SAM joins at stride 2 if its cells cover at most two pixels of a tile, else at stride 4.
    """

    def __init__(self, width: int, projected: int, maps: Sequence[tuple[int, int]]) -> None:
        """Build the head.

        Args:
            width: Channels at stride 1; twice and four times as many at strides 2 and 4.
            projected: Channels to which each of SAM's maps is projected.
            maps: Channels and side, for a tile, of each map that SAM provides.
        """
        super().__init__()
        self.fine_maps = tuple(side * 2 >= TILE for _, side in maps)
        self.projections = nn.ModuleList(Projection(channels, projected) for channels, _ in maps)
        fine = projected * sum(self.fine_maps)
        coarse = projected * len(maps) - fine
        self.full = Block(1 + len(OPERATOR_NAMES), width)
        self.down_half = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.half_block = Block(2 * width + fine, 2 * width)
        self.down_quarter = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.quarter_block = Block(4 * width + coarse, 4 * width)
        self.up_half = nn.Conv2d(4 * width, 2 * width, 1)
        self.half_merge = Block(2 * width, 2 * width)
        self.up_full = nn.Conv2d(2 * width, width, 1)
        self.merge = nn.Conv2d(width, width, 3, padding=1)
        self.logit = nn.Conv2d(width, 1, 1)
        nn.init.normal_(self.logit.weight, std=0.01)
        self.logit.bias = nn.Parameter(torch.tensor([PRIOR_LOGIT]))

    def forward(self, pixels: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits of a batch.

        Args:
            pixels: float (B, 5, H, W): the standardised image and its four operator responses; H, W multiples of 4.
            maps: SAM's maps, float (B, C, h, w), as many as the head was built for.

        Returns:
            float (B, 1, H, W).
        """
        full = self.full(pixels)
        half = F.relu(self.down_half(full))
        quarter_size = (half.shape[-2] // 2, half.shape[-1] // 2)
        fine: list[Tensor] = []
        coarse: list[Tensor] = []
        for projection, feature, is_fine in zip(self.projections, maps, self.fine_maps, strict=True):
            size = half.shape[-2:] if is_fine else quarter_size
            (fine if is_fine else coarse).append(projection(feature, size))
        half = self.half_block(torch.cat([half, *fine], dim=1))
        quarter = self.quarter_block(torch.cat([F.relu(self.down_quarter(half)), *coarse], dim=1))
        half = self.half_merge(half + _twice(self.up_half(quarter)))
        full = F.relu(self.merge(full + _twice(self.up_full(half))))
        return self.logit(full)


def _twice(x: Tensor) -> Tensor:
    """A map at twice its resolution, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class ScalpelTeacher(nn.Module):
    """The teacher network. It takes square tiles; `scalpel.transfer.predict` applies it to images of any size.

    Trainable are the operator scalars of the bank, the adapter, the head and, by configuration, SAM's mask decoder; the
    rest of SAM is frozen and always in evaluation mode.
    """

    def __init__(self, config: TeacherConfig, segmenter: PromptableSegmenter | None = None) -> None:
        """Build an untrained teacher.

        Args:
            config: What it is made of.
            segmenter: The SAM named by ``config.sam`` where it is loaded already; owned and frozen by the teacher.

        Raises:
            ModelError: That SAM cannot be loaded.
        """
        super().__init__()
        self.config = config
        if segmenter is None:
            segmenter = load(config.sam, allow_sam3=config.allow_sam3)
        self.segmenter = segmenter.eval().requires_grad_(False)
        self.sam_sha256 = weights_sha256(self.segmenter)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.bank = OperatorBank()
            self.adapter: HierarchicalAdapter | None = None
            maps, grids = self._shapes()
            if config.adapter is not None:
                self.adapter = HierarchicalAdapter(
                    self.segmenter.block_channels,
                    _with_levels(config.adapter, self.segmenter.block_channels, grids),
                    torch.Generator().manual_seed(config.seed),
                )
            self.head = FusionHead(config.width, config.projected, maps)
            self.coarse = nn.Conv2d(maps[-1][0], 1, 1)
            self.coarse.bias = nn.Parameter(torch.tensor([PRIOR_LOGIT]))
        if config.train_decoder:
            for name, parameter in self.segmenter.model.mask_decoder.named_parameters():
                parameter.requires_grad_(not name.startswith(UNUSED))

    def train(self, mode: bool = True) -> "ScalpelTeacher":
        """Set the mode of all parts but SAM, which has dropped-out and stability-dependent paths in training."""
        super().train(mode)
        self.segmenter.eval()
        return self

    @torch.no_grad()
    def _shapes(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Channels and side of SAM's maps for a tile, and the side of each encoder block's grid, from one run."""
        grids: list[int] = []
        handles = [
            block.register_forward_hook(
                lambda _block, _inputs, output: grids.append(
                    int((output[0] if isinstance(output, tuple) else output).shape[2])
                )
            )
            for block in self.segmenter.encoder_blocks
        ]
        try:
            maps = self._decode(torch.zeros(1, 1, TILE, TILE), None)
        finally:
            for handle in handles:
                handle.remove()
        return [(int(map.shape[1]), int(map.shape[-1])) for map in maps], grids

    def _decode(self, images: Tensor, responses: Tensor | None) -> list[Tensor]:
        """SAM's maps: its features, then the mask logits of its prompt-free decoder, scaled, (B, M, h, w)."""
        unit = to_unit(images)
        if self.adapter is not None and responses is not None:
            with self.adapter.attached(self.segmenter, responses):
                embedding = self.segmenter.encode(unit)
        else:
            embedding = self.segmenter.encode(unit)
        masks, _ = self.segmenter.decode_low(embedding, multimask=True)
        return [*embedding.features, MASK_SCALE * masks[:, 0]]

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the head and, for an auxiliary loss, those of SAM's decoder alone.

        Args:
            images: float (B, 1, S, S), standardised; S a multiple of 4, 256 in training.

        Returns:
            Logits (B, 1, S, S), and coarse logits (B, 1, h, w) at SAM's mask size over the same square.

        Raises:
            ModelError: The images are not squares of one channel whose side is a multiple of 4.
        """
        if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3] or images.shape[2] % 4:
            raise ModelError(
                f"The teacher got images of shape {tuple(images.shape)}, expected (B, 1, S, S) with S a multiple of 4;"
                " cut the image into tiles, as scalpel.transfer.predict does."
            )
        responses = self.bank(images)
        maps = self._decode(images, responses)
        return self.head(torch.cat([images, responses], dim=1), maps), self.coarse(maps[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, S, S) of standardised images (B, 1, S, S); see `both`."""
        return self.both(images)[0]

    def card(self) -> dict[str, Any]:
        """What `load_teacher` needs beside the weights: the configuration, and which SAM the weights belong to."""
        return {"config": self.config.model_dump(mode="json"), "sam_sha256": self.sam_sha256}


def _with_levels(config: AdapterConfig, block_channels: Sequence[int], grids: Sequence[int]) -> AdapterConfig:
    """Resolve the levels ``auto``: of `choose_levels`, those whose cells cover at least four pixels of a tile.

    Finer tokens would repeat what the bank and the head do at every pixel, and with nano-SAM the level at stride 2
    alone would take a third of a training step.
    """
    if config.levels != "auto":
        return config
    levels = choose_levels(block_channels)
    coarse = tuple(level for level in levels if grids[level] * 4 <= TILE)
    return config.model_copy(update={"levels": coarse or levels[-1:]})


def load_teacher(folder: Path, segmenter: PromptableSegmenter | None = None) -> ScalpelTeacher:
    """Load a trained teacher.

    Args:
        folder: What `scalpel.distill.teach` wrote: `teacher.json` and `weights.safetensors`.
        segmenter: Its SAM, where it is loaded already.

    Returns:
        The teacher on the CPU, in evaluation mode.

    Raises:
        ModelError: The folder holds no trained teacher, or its SAM is not the one it was trained on.
    """
    path = folder / CARD
    try:
        card = read_json(path)
        config = TeacherConfig.model_validate(card["config"])
        expected = card["sam_sha256"]
    except (DataError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(f"{folder} holds no trained teacher ({reason}); finish the teach stage first.") from None
    teacher = ScalpelTeacher(config, segmenter)
    if teacher.sam_sha256 != expected:
        raise ModelError(
            f"{path} belongs to a SAM {config.sam!r} with weights {expected[:12]}, got weights "
            f"{teacher.sam_sha256[:12]}; give that very checkpoint, or train the teacher again."
        )
    load_weights(folder / WEIGHTS, teacher)
    return teacher.eval()
