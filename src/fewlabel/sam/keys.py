r"""Names of tensors: the original packages of SAM and SAM 2 -> transformers' models.

A rule is a regular expression for a whole original name and its new name (`\1`: the first group), or None for a tensor
that the image model has no use for. A name that no rule knows is an error, so no tensor is lost without a word. The
names are those of the state dicts of segment-anything 1.0 and sam2 1.1.0, and of transformers' `SamModel` and
`Sam2Model`.
"""

import re
from collections.abc import Iterable, Sequence

from fewlabel.core.errors import ModelError

Rule = tuple[str, str | None]

SHARED = "shared_image_embedding.positional_embedding"  # of positions in the image ...
TIED = "prompt_encoder.shared_embedding.positional_embedding"  # ... and of prompts: one tensor in the originals
P = r"\.(weight|bias)"
ATTENTION = r"(?:layers\.\d+\.(?:self_attn|cross_attn_(?:token_to_image|image_to_token))|final_attn_token_to_image)"
HEADS = r"(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)"


def _under(old: str, new: str, *rules: Rule) -> tuple[Rule, ...]:
    """Rules for what lies below the prefix `old`, which becomes `new`."""
    return tuple((re.escape(old) + pattern, None if name is None else new + name) for pattern, name in rules)


# Prompt encoder and mask decoder, alike in all families.
_COMMON: tuple[Rule, ...] = (
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", SHARED),
    (r"prompt_encoder\.(not_a_point|no_mask)_embed\.weight", r"prompt_encoder.\1_embed.weight"),
    *_under(
        "prompt_encoder.mask_downscaling.",
        "prompt_encoder.mask_embed.",
        (rf"0{P}", r"conv1.\1"),
        (rf"1{P}", r"layer_norm1.\1"),
        (rf"3{P}", r"conv2.\1"),
        (rf"4{P}", r"layer_norm2.\1"),
        (rf"6{P}", r"conv3.\1"),
    ),
    *_under(
        "mask_decoder.transformer.",
        "mask_decoder.transformer.",
        (rf"({ATTENTION}\.[qkv]_proj){P}", r"\1.\2"),
        (rf"layers\.(\d+)\.norm([1-4]){P}", r"layers.\1.layer_norm\2.\3"),
        (rf"norm_final_attn{P}", r"layer_norm_final_attn.\1"),
    ),
    *_under(
        "mask_decoder.",
        "mask_decoder.",
        (r"(iou_token|mask_tokens)\.weight", r"\1.weight"),
        (rf"output_upscaling\.0{P}", r"upscale_conv1.\1"),
        (rf"output_upscaling\.1{P}", r"upscale_layer_norm.\1"),
        (rf"output_upscaling\.3{P}", r"upscale_conv2.\1"),
        (rf"({HEADS})\.layers\.0{P}", r"\1.proj_in.\2"),
        (rf"({HEADS})\.layers\.1{P}", r"\1.layers.0.\2"),
        (rf"({HEADS})\.layers\.2{P}", r"\1.proj_out.\2"),
    ),
)
_SAM_DECODER: tuple[Rule, ...] = (
    *_COMMON,
    (r"prompt_encoder\.point_embeddings\.(\d)\.weight", r"prompt_encoder.point_embed.\1.weight"),
    *_under(
        "mask_decoder.transformer.",
        "mask_decoder.transformer.",
        (rf"({ATTENTION}\.out_proj){P}", r"\1.\2"),
        (rf"(layers\.\d+\.mlp\.lin[12]){P}", r"\1.\2"),
    ),
    (r"pixel_(?:mean|std)", None),  # buffers that some programs store; `PromptableSegmenter` has its own
)
_SAM: tuple[Rule, ...] = (
    *_SAM_DECODER,
    *_under(
        "image_encoder.",
        "vision_encoder.",
        (r"pos_embed", "pos_embed"),
        (rf"patch_embed\.proj{P}", r"patch_embed.projection.\1"),
        (rf"blocks\.(\d+)\.norm([12]){P}", r"layers.\1.layer_norm\2.\3"),
        (r"blocks\.(\d+)\.attn\.(rel_pos_[hw])", r"layers.\1.attn.\2"),
        (rf"blocks\.(\d+)\.(attn\.(?:qkv|proj)|mlp\.lin[12]){P}", r"layers.\1.\2.\3"),
        (r"neck\.0\.weight", "neck.conv1.weight"),
        (rf"neck\.1{P}", r"neck.layer_norm1.\1"),
        (r"neck\.2\.weight", "neck.conv2.weight"),
        (rf"neck\.3{P}", r"neck.layer_norm2.\1"),
    ),
)
# SAM 2 stores its decoder as "sam_prompt_encoder" and "sam_mask_decoder"; these rules are for the names without "sam_".
_SAM2_DECODER: tuple[Rule, ...] = (
    *_COMMON,
    (r"prompt_encoder\.point_embeddings\.(\d)\.weight", r"prompt_encoder.point_embed.weight[\1]"),
    *_under(
        "mask_decoder.transformer.",
        "mask_decoder.transformer.",
        (rf"({ATTENTION})\.out_proj{P}", r"\1.o_proj.\2"),
        (rf"(layers\.\d+\.mlp)\.layers\.0{P}", r"\1.proj_in.\2"),
        (rf"(layers\.\d+\.mlp)\.layers\.1{P}", r"\1.proj_out.\2"),
    ),
    (r"mask_decoder\.obj_score_token\.weight", "mask_decoder.obj_score_token.weight"),
    (rf"mask_decoder\.(conv_s[01]){P}", r"mask_decoder.\1.\2"),
)
_SAM2_REST: tuple[Rule, ...] = (
    (r"no_mem_embed", "no_memory_embedding"),
    *_under(
        "image_encoder.trunk.",
        "vision_encoder.backbone.",
        (r"(pos_embed|pos_embed_window)", r"\1"),
        (rf"patch_embed\.proj{P}", r"patch_embed.projection.\1"),
        (rf"blocks\.(\d+)\.norm([12]){P}", r"blocks.\1.layer_norm\2.\3"),
        (rf"(blocks\.\d+\.(?:attn\.qkv|attn\.proj|proj)){P}", r"\1.\2"),
        (rf"(blocks\.\d+\.mlp)\.layers\.0{P}", r"\1.proj_in.\2"),
        (rf"(blocks\.\d+\.mlp)\.layers\.1{P}", r"\1.proj_out.\2"),
    ),
    (rf"image_encoder\.neck\.convs\.(\d+)\.conv{P}", r"vision_encoder.neck.convs.\1.\2"),
    # The memory of earlier video frames, which a single image does not have.
    (r"maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial", None),
    (rf"(?:mask_downsample|obj_ptr_tpos_proj|obj_ptr_proj(?:\.layers\.\d+)?){P}", None),
    (rf"memory_attention\.layers\.\d+\.(?:self_attn|cross_attn_image)\.(?:[qkv]|out)_proj{P}", None),
    (rf"memory_attention\.(?:norm|layers\.\d+\.(?:linear[12]|norm[123])){P}", None),
    (rf"memory_encoder\.(?:mask_downsampler\.encoder\.\d+|pix_feat_proj|out_proj){P}", None),
    (rf"memory_encoder\.fuser\.layers\.\d+\.(?:gamma|(?:dwconv|norm|pwconv[12]){P})", None),
)


def sam_keys(names: Iterable[str]) -> dict[str, str | None]:
    """Where each tensor of an original SAM checkpoint goes in transformers' `SamModel`.

    Args:
        names: Names in the state dict of segment-anything's `Sam`.

    Returns:
        Original name to new name, one to one; None for a tensor that is knowingly unused.

    Raises:
        ModelError: A name belongs to no part of SAM.
    """
    return _rename(names, _SAM, "SAM")


def sam_decoder_keys(names: Iterable[str]) -> dict[str, str | None]:
    """The part of `sam_keys` that is not the image encoder, for models that share SAM's decoder.

    Raises:
        ModelError: A name belongs neither to SAM's prompt encoder nor to its mask decoder.
    """
    return _rename(names, _SAM_DECODER, "SAM's prompt encoder and mask decoder")


def sam2_keys(names: Iterable[str]) -> dict[str, str | None]:
    """Where each tensor of an original SAM 2 or 2.1 checkpoint goes in transformers' `Sam2Model`.

    Args:
        names: Names in the state dict of sam2's `SAM2Base` or `SAM2VideoPredictor`.

    Returns:
        Original name to new name, one to one; None for the video memory, which the image model does not have. Four
        vectors become rows of one matrix: their new names end in `[row]`.

    Raises:
        ModelError: A name belongs to no part of SAM 2.
    """
    names = list(names)
    decoder = {
        name: name.removeprefix("sam_")
        for name in names
        if name.startswith(("sam_prompt_encoder.", "sam_mask_decoder."))
    }
    renamed = _rename(decoder.values(), _SAM2_DECODER, "SAM 2's prompt encoder and mask decoder")
    rest = _rename([name for name in names if name not in decoder], _SAM2_REST, "SAM 2")
    return {name: renamed[decoder[name]] if name in decoder else rest[name] for name in names}


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _rename(names: Iterable[str], rules: Sequence[Rule], owner: str) -> dict[str, str | None]:
    """Apply to each name the one rule that matches it as a whole."""
    keys: dict[str, str | None] = {}
    unknown = []
    for name in names:
        for pattern, new in rules:
            if match := re.fullmatch(pattern, name):
                keys[name] = None if new is None else match.expand(new)
                break
        else:
            unknown.append(name)
    if unknown:
        raise ModelError(
            f"{len(unknown)} tensors belong to no part of {owner} ({some(unknown)}); give the authors' own checkpoint, "
            "or remove what was added to it."
        )
    return keys
