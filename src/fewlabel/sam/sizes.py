"""Sizes of a network, read from the shapes of its tensors: original checkpoints hold no configuration.

What shapes do not tell (attention heads of Hiera, its windows and globally attending blocks, the frame of SAM 2) is
taken from the published variants, which are recognised by width and depth, or from the caller. Sources: `build_sam.py`
of segment-anything 1.0, the files under `configs/` of sam2 1.1.0.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewlabel.core.errors import ModelError

Tensors = Mapping[str, Tensor]

VIT = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}  # (channels, blocks)
DECODER_HEADS = 8  # in every published SAM and SAM 2
# Both originals use PyTorch's default in the decoder; transformers' own default for SAM, 1e-6, differs from it.
DECODER_EPS = 1e-5


@dataclass(frozen=True)
class Hiera:
    """What the shapes of a Hiera encoder do not tell.

    Attributes:
        name: The variant.
        heads: Attention heads of the first stage, doubled at each later one.
        windows: Side of the attention windows of each stage in cells.
        global_blocks: Blocks that attend to the whole grid.
    """

    name: str
    heads: int
    windows: tuple[int, ...]
    global_blocks: tuple[int, ...]


HIERA: Mapping[tuple[int, tuple[int, ...]], Hiera] = {  # by channels of the first stage and blocks of each stage
    (96, (1, 2, 7, 2)): Hiera("hiera_tiny", 1, (8, 4, 14, 7), (5, 7, 9)),
    (96, (1, 2, 11, 2)): Hiera("hiera_small", 1, (8, 4, 14, 7), (7, 10, 13)),
    (112, (2, 3, 16, 3)): Hiera("hiera_base_plus", 2, (8, 4, 14, 7), (12, 16, 20)),
    (144, (2, 6, 36, 4)): Hiera("hiera_large", 2, (8, 4, 16, 8), (23, 33, 43)),
}


def vit_variant(tensors: Tensors) -> str:
    """Name of the published ViT with these shapes, else "vit_custom"."""
    embedding = tensors.get("image_encoder.pos_embed")
    channels = 0 if embedding is None or embedding.ndim == 0 else int(embedding.shape[-1])
    return VIT.get((channels, len(_indices(tensors, "image_encoder.blocks"))), "vit_custom")


def hiera_variant(tensors: Tensors) -> str:
    """Name of the published Hiera with these shapes, else "hiera_custom"."""
    known = _known_hiera(tensors)
    return "hiera_custom" if known is None else known.name


def sam_config(tensors: Tensors) -> dict[str, Any]:
    """The configuration of transformers' `SamModel` for an original SAM checkpoint.

    Heads follow from the length of the relative positions' vectors, windows from their number: 2 s - 1 for an
    attention over s x s cells.

    Args:
        tensors: State dict of segment-anything's `Sam`.

    Returns:
        Arguments of `SamConfig`.

    Raises:
        ModelError: A tensor that the sizes are read from is missing or has a shape that no SAM has.
    """
    channels, colours, patch, _ = _shape(tensors, "image_encoder.patch_embed.proj.weight", 4)
    grid = _shape(tensors, "image_encoder.pos_embed", 4)[1]
    blocks = _indices(tensors, "image_encoder.blocks")
    reach = {i: _shape(tensors, f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in blocks}
    sides = {i: (length + 1) // 2 for i, (length, _) in reach.items()}
    windows = sorted({side for side in sides.values() if side != grid})
    heads = sorted({channels // width for _, width in reach.values()})
    if len(windows) > 1 or len(heads) != 1:
        raise ModelError(
            f"its blocks attend in windows of {windows} cells with {heads} heads, where SAM has one window and one "
            "number of heads; give the authors' own checkpoint."
        )
    output = _shape(tensors, "image_encoder.neck.0.weight", 4)[0]
    vision = {
        "hidden_size": channels,
        "output_channels": output,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads[0],
        "num_channels": colours,
        "image_size": grid * patch,
        "patch_size": patch,
        "window_size": windows[0] if windows else grid,
        "global_attn_indexes": [i for i, side in sides.items() if side == grid],
        "num_pos_feats": output // 2,
        "mlp_dim": _shape(tensors, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
    }
    return {"vision_config": vision} | decoder_config(tensors, "", grid * patch, patch)


def sam2_config(tensors: Tensors, given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of transformers' `Sam2Model` for an original SAM 2 or 2.1 checkpoint.

    Args:
        tensors: State dict of sam2's `SAM2Base` or `SAM2VideoPredictor`.
        given: Arguments of `Sam2Config`, asked for an encoder of unpublished sizes alone: in `vision_config` /
            `backbone_config`, they must hold `image_size`, `num_attention_heads_per_stage`, `window_size_per_stage` and
            `global_attention_blocks`.

    Returns:
        Arguments of `Sam2Config`.

    Raises:
        ModelError: A tensor that the sizes are read from is missing or has a shape that no SAM 2 has, or one of these
            four values is not known.
    """
    trunk = "image_encoder.trunk"
    channels, colours, kernel, _ = _shape(tensors, f"{trunk}.patch_embed.proj.weight", 4)
    stages = _hiera_stages(tensors)
    widths = [_shape(tensors, f"{trunk}.blocks.{start}.norm2.weight", 1)[0] for start, _ in stages]
    hidden = _shape(tensors, f"{trunk}.blocks.0.mlp.layers.0.weight", 2)[0]
    known = _known_hiera(tensors)
    heard = (given.get("vision_config") or {}).get("backbone_config") or {}
    unseen: dict[str, Any] = {}
    if known is not None:
        unseen = {
            "image_size": [1024, 1024],
            "num_attention_heads_per_stage": [known.heads << stage for stage in range(len(stages))],
            "window_size_per_stage": list(known.windows),
            "global_attention_blocks": list(known.global_blocks),
        }
    unseen |= {name: heard[name] for name in _UNSEEN if name in heard}
    if missing := [name for name in _UNSEEN if name not in unseen]:
        raise ModelError(
            f"an encoder of {channels} channels and {[count for _, count in stages]} blocks is no published Hiera, and "
            f"its shapes do not tell {', '.join(missing)}; give these in vision_config.backbone_config of a "
            "configuration."
        )
    side = unseen["image_size"]
    side = int(side if isinstance(side, int) else side[0])
    backbone = (
        unseen
        | {
            "model_type": "sam2_hiera_det_model",  # transformers could hold another backbone here
            "image_size": [side, side],
            "hidden_size": channels,
            "num_channels": colours,
            "patch_kernel_size": [kernel, kernel],
            "patch_padding": [kernel // 2, kernel // 2],
            "window_positional_embedding_background_size": list(_shape(tensors, f"{trunk}.pos_embed", 4)[2:]),
            "blocks_per_stage": [count for _, count in stages],
            "embed_dim_per_stage": widths,
            "mlp_ratio": hidden / widths[0],
        }
    )
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[side // stride, side // stride] for stride in (4, 8, 16)],
        "fpn_hidden_size": _shape(tensors, "image_encoder.neck.convs.0.conv.weight", 4)[0],
    }
    return {"vision_config": vision} | decoder_config(tensors, "sam_", side, 16)


def decoder_config(tensors: Tensors, prefix: str, side: int, patch: int) -> dict[str, Any]:
    """The parts of the configuration for prompt encoder and mask decoder, alike in all families.

    Args:
        tensors: State dict of the original.
        prefix: What stands before "prompt_encoder" and "mask_decoder": "sam_" in SAM 2.
        side: Side of the model's frame in pixels.
        patch: Pixels to a cell of the image embedding.

    Returns:
        `prompt_encoder_config` and `mask_decoder_config`.

    Raises:
        ModelError: A tensor that the sizes are read from is missing or has a shape that no SAM has.
    """
    decoder = f"{prefix}mask_decoder"
    layers = f"{decoder}.transformer.layers"
    tokens, channels = _shape(tensors, f"{decoder}.mask_tokens.weight", 2)
    inner = _shape(tensors, f"{layers}.0.cross_attn_token_to_image.q_proj.weight", 2)[0]
    mlp = "mlp.layers.0" if prefix else "mlp.lin1"
    masks: dict[str, Any] = {
        "hidden_size": channels,
        "mlp_dim": _shape(tensors, f"{layers}.0.{mlp}.weight", 2)[0],
        "num_hidden_layers": len(_indices(tensors, layers)),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": channels // inner,
        "num_multimask_outputs": tokens - 1,
        "iou_head_hidden_dim": _shape(tensors, f"{decoder}.iou_prediction_head.layers.0.weight", 2)[0],
    }
    if not prefix:  # transformers' SAM 2 has no such field, and PyTorch's default as the original
        masks["layer_norm_eps"] = DECODER_EPS
    prompts = {
        "hidden_size": channels,
        "image_size": side,
        "patch_size": patch,
        "mask_input_channels": _shape(tensors, f"{prefix}prompt_encoder.mask_downscaling.3.weight", 4)[0],
    }
    return {"prompt_encoder_config": prompts, "mask_decoder_config": masks}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, tables within tables taken together."""
    both = dict(base)
    for name, value in over.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


_UNSEEN = ("image_size", "num_attention_heads_per_stage", "window_size_per_stage", "global_attention_blocks")


def _hiera_stages(tensors: Tensors) -> list[tuple[int, int]]:
    """First block and number of blocks of each stage: the first widens its tokens by a projection of its own."""
    blocks = _indices(tensors, "image_encoder.trunk.blocks")
    wider = [n for n, i in enumerate(blocks) if n and f"image_encoder.trunk.blocks.{i}.proj.weight" in tensors]
    return [(start, end - start) for start, end in zip([0, *wider], [*wider, len(blocks)], strict=True)]


def _known_hiera(tensors: Tensors) -> Hiera | None:
    """The published Hiera with these shapes."""
    embedding = tensors.get("image_encoder.trunk.pos_embed")
    channels = int(embedding.shape[1]) if embedding is not None and embedding.ndim == 4 else 0
    return HIERA.get((channels, tuple(count for _, count in _hiera_stages(tensors))))


def _indices(tensors: Tensors, prefix: str) -> Sequence[int]:
    """The numbers that follow `prefix` in names, in order."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,6})\.")
    return sorted({int(match[1]) for name in tensors if (match := pattern.match(name))})


def _shape(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    """Shape of a tensor that the sizes are read from."""
    if name not in tensors:
        raise ModelError(f"it has no tensor {name}; the file is incomplete, download it again.")
    shape = tuple(int(side) for side in tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ModelError(
            f"its tensor {name} has shape {shape}, expected {axes} axes, none of them empty; give the authors' own "
            "checkpoint."
        )
    return shape
