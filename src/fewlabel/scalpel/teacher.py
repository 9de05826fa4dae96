"""The expert teacher: a frozen SAM with operator adapters, its prompt-free mask decoder, and a full-resolution head.

Our own design after Scalpel-SAM (arXiv 2512.22483), whose network is not public:

    priors   = operator bank of the image, or its control              at every pixel
    features = frozen SAM encoder with the adapter's experts in it      at SAM's grids
    masks    = SAM's mask decoder without any prompt                    at SAM's mask size
    logits   = small U-shaped head on [image, priors], into which features and masks are fused at strides 2 and 4

SAM alone works at strides of 2 to 16 pixels; a target of 2 × 2 pixels lives in the head's stride-1 path.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from fewlabel.core.errors import DataError, ModelError
from fewlabel.core.files import read_json
from fewlabel.core.radiometry import to_unit
from fewlabel.data.tiles import TILE
from fewlabel.sam.families import load
from fewlabel.sam.promptable import Embedding, PromptableSegmenter
from fewlabel.scalpel.adapter import Adapter, AdapterConfig, choose_levels, make_adapter
from fewlabel.scalpel.bank import OPERATOR_NAMES, Experts, make_bank
from fewlabel.scalpel.head import PRIOR_LOGIT, FusionHead
from fewlabel.training.checkpoint import load_weights, weights_sha256
from fewlabel.training.loop import WEIGHTS

CARD = "teacher.json"
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
    experts: Experts = Field(
        default="operators",
        description="What looks at the pixels and, in an adapter of experts, at the tokens: the white-box operators."
        " For comparison: convolutions, learned in their place; none.",
    )
    operators: tuple[str, ...] = Field(
        default=OPERATOR_NAMES,
        description=f"The operators in use, as experts and as priors of the distillation: {', '.join(OPERATOR_NAMES)}.",
    )
    train_decoder: bool = Field(default=True, description="Train SAM's mask decoder; otherwise it stays frozen.")
    width: int = Field(default=16, ge=4, multiple_of=4, description="Channels of the head at full resolution.")
    projected: int = Field(default=16, ge=1, description="Channels that each of SAM's feature maps is projected to.")
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights.")

    @field_validator("operators")
    @classmethod
    def _known_operators(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) < len(names) or not set(names) <= set(OPERATOR_NAMES):
            raise ValueError(f"it has to name at least one of {', '.join(OPERATOR_NAMES)}, each at most once")
        return names

    @model_validator(mode="after")
    def _experts_for_the_adapter(self) -> "TeacherConfig":
        if self.experts == "none" and self.adapter is not None and self.adapter.kind == "experts":
            raise ValueError("an adapter of kind experts needs experts: choose another kind, or adapter null")
        return self


class TeacherOutput(NamedTuple):
    """What the teacher makes of B images.

    Attributes:
        logits: float (N, 1, S, S), the head's, of the first N images.
        coarse: float (B, 1, h, w), those of SAM's prompt-free decoder alone at SAM's mask size, over the same square.
        embedding: float (B, C, h', w'), the adapted image embedding that SAM's decoder attends to.
    """

    logits: Tensor
    coarse: Tensor
    embedding: Tensor


class ScalpelTeacher(nn.Module):
    """The teacher network. It takes square tiles; `scalpel.transfer.predict` applies it to images of any size.

    Trainable are the scalars (or convolutions) of the bank, the adapter, the head and, by configuration, SAM's mask
    decoder; the rest of SAM is frozen and always in evaluation mode.
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
            self.bank = make_bank(config.experts, config.operators)
            self.adapter: Adapter | None = None
            maps, grids = self._shapes()
            if config.adapter is not None:
                self.adapter = make_adapter(
                    _with_levels(config.adapter, self.segmenter.block_channels, grids),
                    self.segmenter,
                    config.experts,
                    config.operators,
                    self.bank.channels,
                    torch.Generator().manual_seed(config.seed),
                )
            self.head = FusionHead(1 + self.bank.channels, config.width, config.projected, maps)
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
            maps = self._maps(self.segmenter.encode(torch.zeros(1, 1, TILE, TILE)))
        finally:
            for handle in handles:
                handle.remove()
        return [(int(map.shape[1]), int(map.shape[-1])) for map in maps], grids

    def _encode(self, images: Tensor, responses: Tensor) -> Embedding:
        """What the encoder, adapted if there is an adapter, makes of standardised images."""
        if self.adapter is None:
            return self.segmenter.encode(to_unit(images))
        with self.adapter.attached(self.segmenter, responses, images):
            return self.segmenter.encode(to_unit(images))

    def _maps(self, embedding: Embedding) -> list[Tensor]:
        """SAM's maps: its features, then the mask logits of its prompt-free decoder, scaled, (B, M, h, w)."""
        masks, _ = self.segmenter.decode_low(embedding, multimask=True)
        return [*embedding.features, MASK_SCALE * masks[:, 0]]

    def outputs(self, images: Tensor, logits_of: int | None = None) -> TeacherOutput:
        """All that a loss may look at.

        Args:
            images: float (B, 1, S, S), standardised; S a multiple of 4, 256 in training.
            logits_of: Number N of images, from the first, that go through the head as well; all by default.

        Returns:
            Logits of the head, those of SAM's decoder, and the embedding.

        Raises:
            ModelError: The images are not squares of one channel whose side is a multiple of 4.
        """
        if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3] or images.shape[2] % 4:
            raise ModelError(
                f"The teacher got images of shape {tuple(images.shape)}, expected (B, 1, S, S) with S a multiple of 4;"
                " cut the image into tiles, as scalpel.transfer.predict does."
            )
        responses = self.bank(images)
        embedding = self._encode(images, responses)
        maps = self._maps(embedding)
        pixels = torch.cat([images, responses], dim=1)[:logits_of]
        logits = self.head(pixels, [feature[:logits_of] for feature in maps])
        return TeacherOutput(logits, self.coarse(maps[-1]), embedding.features[-1])

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and coarse logits of `outputs`."""
        logits, coarse, _ = self.outputs(images)
        return logits, coarse

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, S, S) of standardised images (B, 1, S, S); see `outputs`."""
        return self.outputs(images).logits

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
