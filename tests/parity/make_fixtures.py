"""Write the fixtures of tests/sam/test_convert.py with the original packages of SAM and SAM 2.

`make parity` runs this in an environment of its own, with segment-anything, sam2 and torchvision beside a CPU torch.
The original classes are built at small sizes with random weights, saved as their authors save them, and asked for
features, masks and predicted IoU through their own predictors; the names and shapes of the published sizes are listed
as well.
"""

import gzip
import json
import math
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# torchvision's compiled operators do not load beside a CPU torch; these two schemas let it be imported without them.
_SCHEMAS = torch.library.Library("torchvision", "DEF")
_SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from sam2.build_sam import build_sam2  # noqa: E402
from sam2.modeling.backbones.hieradet import Hiera  # noqa: E402
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder  # noqa: E402
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer  # noqa: E402
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder  # noqa: E402
from sam2.modeling.position_encoding import PositionEmbeddingSine  # noqa: E402
from sam2.modeling.sam.mask_decoder import MaskDecoder as MaskDecoder2  # noqa: E402
from sam2.modeling.sam.transformer import RoPEAttention  # noqa: E402
from sam2.modeling.sam.transformer import TwoWayTransformer as TwoWayTransformer2  # noqa: E402
from sam2.modeling.sam2_base import SAM2Base  # noqa: E402
from sam2.sam2_image_predictor import SAM2ImagePredictor  # noqa: E402
from segment_anything import SamPredictor, sam_model_registry  # noqa: E402
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer  # noqa: E402

FIXTURES = Path(__file__).parents[1] / "sam" / "fixtures"
CHANNELS = 32  # of the image embedding; 8 heads of 4 (self-attention) and of 2 (the others)
SAM_SIDE, SAM2_SIDE = 64, 96
# What the shapes of a Hiera do not tell. Windows pad the grids of the third and fourth stage (6 and 3 cells wide).
HIERA = {
    "image_size": SAM2_SIDE,
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [3],
}


def tiny_sam() -> Sam:
    """SAM over 64 pixels: 4 x 4 cells, two blocks in windows of 3 (which pad the grid), one global."""
    grid = SAM_SIDE // 16
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=SAM_SIDE,
            embed_dim=24,
            depth=3,
            num_heads=3,
            out_chans=CHANNELS,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=CHANNELS,
            image_embedding_size=(grid, grid),
            input_image_size=(SAM_SIDE, SAM_SIDE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=TwoWayTransformer(depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=48),
            iou_head_hidden_dim=40,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


def tiny_sam2(new: bool) -> SAM2Base:
    """SAM 2, or 2.1 when `new`, over 96 pixels, with the flags of the authors' configurations."""
    position = partial(PositionEmbeddingSine, normalize=True, scale=None, temperature=10000)
    trunk = Hiera(
        embed_dim=8,
        num_heads=HIERA["num_attention_heads_per_stage"][0],
        stages=(1, 1, 3, 1),
        global_att_blocks=tuple(HIERA["global_attention_blocks"]),
        window_pos_embed_bkg_spatial_size=(5, 5),
        window_spec=tuple(HIERA["window_size_per_stage"]),
    )
    neck = FpnNeck(
        position_encoding=position(num_pos_feats=CHANNELS),
        d_model=CHANNELS,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    rope = partial(RoPEAttention, rope_theta=10000.0, feat_sizes=[6, 6], num_heads=1, downsample_rate=1, dropout=0.1)
    attention = MemoryAttention(
        d_model=CHANNELS,
        pos_enc_at_input=True,
        layer=MemoryAttentionLayer(
            activation="relu",
            dim_feedforward=16,
            dropout=0.1,
            pos_enc_at_attn=False,
            self_attention=rope(embedding_dim=CHANNELS),
            d_model=CHANNELS,
            pos_enc_at_cross_attn_keys=True,
            pos_enc_at_cross_attn_queries=False,
            cross_attention=rope(embedding_dim=CHANNELS, rope_k_repeat=True, kv_in_dim=16),
        ),
        num_layers=1,
    )
    memory = MemoryEncoder(
        out_dim=16,
        position_encoding=position(num_pos_feats=16),
        mask_downsampler=MaskDownSampler(embed_dim=CHANNELS, kernel_size=3, stride=2, padding=1, total_stride=4),
        fuser=Fuser(CXBlock(dim=CHANNELS, use_dwconv=True), num_layers=2),
        in_dim=CHANNELS,
    )
    stability = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    pointers = {
        "proj_tpos_enc_in_obj_ptrs": True,
        "use_signed_tpos_enc_to_obj_ptrs": True,
        "no_obj_embed_spatial": True,
    }
    model = SAM2Base(
        image_encoder=ImageEncoder(trunk=trunk, neck=neck, scalp=1),
        memory_attention=attention,
        memory_encoder=memory,
        num_maskmem=7,
        image_size=SAM2_SIDE,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=new,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        sam_mask_decoder_extra_args=stability,
        **(pointers if new else {}),
    )
    # The decoder that the class builds has 2048 hidden units, which would make up most of the file.
    model.sam_mask_decoder = MaskDecoder2(
        transformer_dim=CHANNELS,
        transformer=TwoWayTransformer2(depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=48),
        iou_head_hidden_dim=40,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
        **stability,
    )
    return model


@torch.no_grad()
def fill(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights: variance about 1 / fan-in for maps, 1 for tokens, and no two vectors alike.

    Masks depend on the prompts (by 0.05 to 0.2 in the logits), and rounding stays below 1e-5 in them.
    """
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        module = name.rpartition(".")[0].rpartition(".")[2]
        if value.ndim == 1:
            scale = name.endswith(("gamma", "weight"))  # of a normalisation
            value.copy_(scale + 0.3 * noise)
        elif "embed" in module or "token" in module or name.endswith("gaussian_matrix"):
            value.copy_(noise)
        elif name.endswith("weight"):
            fan_in = value.shape[0] if "output_upscaling" in name else value[0].numel()
            value.copy_(gain_of(name) * noise / math.sqrt(fan_in))
        else:  # positional embeddings
            value.copy_(0.3 * noise)


def gain_of(name: str) -> float:
    """Gain of a map: less where Hiera's sums, which are not normalised, enter its neck; more where prompts attend."""
    if "neck.convs" in name:
        return 0.25
    return 2.0 if re.search(r"_to_(image|token)\.[qk]_proj", name) else 1.2


def prompts(width: int, height: int, cells: int, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """Prompts by case, in pixel indices as the originals take them; P prompts each.

    Args:
        width: Of the image in pixels.
        height: Of the image in pixels.
        cells: Side of the mask prompt.
        generator: Draws the places.

    Returns:
        Of each case some of: points `(P, K, 2)` xy, labels `(P, K)`, boxes `(P, 4)` xyxy, masks `(P, 1, cells, cells)`
        logits.
    """
    extent = torch.tensor([width, height], dtype=torch.float32)

    def points(count: int, each: int) -> Tensor:
        return torch.rand((count, each, 2), generator=generator) * (extent - 1)

    def boxes(count: int) -> Tensor:
        return points(count, 2).sort(dim=1).values.flatten(1)

    def masks(count: int) -> Tensor:
        return 4 * torch.randn((count, 1, cells, cells), generator=generator)

    one, three = torch.ones(4, 1, dtype=torch.int32), torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.int32)
    return {
        "point": {"points": points(4, 1), "labels": one},
        "points": {"points": points(2, 3), "labels": three},
        "box": {"boxes": boxes(3)},
        "box-point": {"boxes": boxes(2), "points": points(2, 3), "labels": three},
        "mask": {"masks": masks(1)},
        "mask-point": {"masks": masks(2), "points": points(2, 3), "labels": three},
    }


def record(predict: object, features: list[Tensor], image: np.ndarray, cases: dict[str, dict[str, Tensor]]) -> dict:
    """Everything the test compares, by name.

    Args:
        predict: Takes points, labels, boxes, masks and multimask; returns image logits, predicted IoU and low logits.
        features: Of the encoder, highest resolution first.
        image: uint8 `(H, W, 3)`.
        cases: What `prompts` returned.
    """
    found = {"image": torch.from_numpy(image)} | {f"features.{i}": level for i, level in enumerate(features)}
    for case, given in cases.items():
        found |= {f"{case}.{kind}": value for kind, value in given.items()}
        for mode, multimask in (("three", True), ("one", False)):
            arguments = [given.get(kind) for kind in ("points", "labels", "boxes", "masks")]
            logits, quality, low = predict(*arguments, multimask_output=multimask, return_logits=True)
            found |= {f"{case}.{mode}.low": low, f"{case}.{mode}.quality": quality}
            if case == "point" and not multimask:
                found[f"{case}.{mode}.logits"] = logits[:1]  # one is enough to see where it lies
            spread = f"logits {low.mean():.2f} +- {low.std():.2f}, IoU {quality.min():.2f} to {quality.max():.2f}"
            print(f"  {case:10} {mode:5} {spread}")
            assert low.abs().max() < 32, "SAM 2's predictor cuts logits at 32"
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def make_sam() -> None:
    """SAM with an image of 48 x 64 pixels, which leaves padding in its frame."""
    generator = torch.Generator().manual_seed(1)
    model = tiny_sam().eval()
    fill(model, generator)
    torch.save(model.state_dict(), FIXTURES / "sam.pth")
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    cases = prompts(64, 48, SAM_SIDE // 4, generator)
    save_file(record(predictor.predict_torch, [predictor.features], image, cases), FIXTURES / "sam.safetensors")


def make_sam2(new: bool) -> None:
    """SAM 2 or 2.1 with an image that fills its frame."""
    generator = torch.Generator().manual_seed(3 if new else 2)
    model = tiny_sam2(new).eval()
    fill(model, generator)
    if new:  # so that its single masks are stable; the best of three replaces those of the other
        with torch.no_grad():
            model.sam_mask_decoder.output_hypernetworks_mlps[0].layers[2].bias.add_(6.0)
    name = "sam2.1" if new else "sam2"
    torch.save({"model": model.state_dict()}, FIXTURES / f"{name}.pt")
    image = np.random.default_rng(2).integers(0, 256, (SAM2_SIDE, SAM2_SIDE, 3), dtype=np.uint8)
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(SAM2_SIDE // stride,) * 2 for stride in (4, 8, 16)]  # fixed there for 1024 pixels
    predictor.set_image(image)
    found = predictor._features
    features = [*found["high_res_feats"], found["image_embed"]]
    cases = prompts(SAM2_SIDE, SAM2_SIDE, SAM2_SIDE // 4, generator)
    save_file(record(predictor._predict, features, image, cases), FIXTURES / f"{name}.safetensors")


def published() -> dict[str, dict[str, object]]:
    """What a conversion has to find out about every published size, from the models themselves."""
    found = {}
    for name in ("vit_b", "vit_l", "vit_h"):
        with torch.device("meta"):
            model = sam_model_registry[name]()
        found[name] = facts(model, model.image_encoder.blocks, model.mask_decoder, model.image_encoder.img_size)
    for version in ("2", "2.1"):
        for size, short in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l")):
            path = f"configs/sam{version}/sam{version}_hiera_{short}.yaml"
            model = build_sam2(path, device="cpu")
            blocks = model.image_encoder.trunk.blocks
            found[f"sam{version}_hiera_{size}"] = facts(model, blocks, model.sam_mask_decoder, model.image_size)
    return found


def facts(model: nn.Module, blocks: nn.ModuleList, decoder: nn.Module, side: int) -> dict[str, object]:
    """Shapes by name, and what they do not tell: heads and windows (0: none) by block, heads of the decoder, side."""
    return {
        "shapes": {name: list(value.shape) for name, value in model.state_dict().items()},
        "heads": [block.attn.num_heads for block in blocks],
        "windows": [block.window_size for block in blocks],
        "decoder_heads": decoder.transformer.layers[0].self_attn.num_heads,
        "image_size": side,
    }


def main() -> None:
    """Write all fixtures and print their sizes."""
    torch.set_num_threads(1)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    print("SAM")
    make_sam()
    for new in (False, True):
        print("SAM 2.1" if new else "SAM 2")
        make_sam2(new)
    (FIXTURES / "hiera.json").write_text(json.dumps({"vision_config": {"backbone_config": HIERA}}, indent=2) + "\n")
    text = json.dumps(published(), separators=(",", ":"))
    (FIXTURES / "published.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    files = sorted(FIXTURES.iterdir())
    for path in files:
        print(f"{path.stat().st_size:9,d} bytes  {path.name}")
    total = sum(path.stat().st_size for path in files)
    print(f"{total:9,d} bytes in all")
    if total > 3_000_000:
        sys.exit("the fixtures are larger than 3 MB")


if __name__ == "__main__":
    main()
