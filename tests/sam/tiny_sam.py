"""Tiny random SAM models: the real classes at a size that runs in milliseconds."""

import torch
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    Sam3TrackerConfig,
    Sam3TrackerMaskDecoderConfig,
    Sam3TrackerModel,
    Sam3TrackerPromptEncoderConfig,
    Sam3VisionConfig,
    Sam3ViTConfig,
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQModel,
    SamHQPromptEncoderConfig,
    SamHQVisionConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from fewlabel.sam.mobile import MobileSamModel, build_mobile_sam

FRAME = 64
SAM3_FRAME = 112  # patches of 14


def tiny_sam() -> SamModel:
    """SAM with a 64-pixel frame: 4x4 image embedding, 16x16 logits."""
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=FRAME,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[1],
        num_pos_feats=16,
        initializer_range=0.1,  # the default of 1e-10 would hide the image
        mlp_dim=32,
    )
    prompts = SamPromptEncoderConfig(hidden_size=32, image_size=FRAME, patch_size=16)
    decoder = SamMaskDecoderConfig(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    torch.manual_seed(0)
    return SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompts.to_dict(),
            mask_decoder_config=decoder.to_dict(),
            initializer_range=0.1,
        )
    )


def tiny_sam2() -> Sam2Model:
    """SAM 2 with a 64-pixel frame: strides 4, 8 and 16, 16x16 logits."""
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[FRAME, FRAME],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 24, 32],  # must grow at each pooled stage,
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[32, 24, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=32, image_size=FRAME, patch_size=16)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=32,
        mlp_dim=32,
        num_attention_heads=2,
        iou_head_hidden_dim=16,
        dynamic_multimask_via_stability=False,
    )
    torch.manual_seed(0)
    model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    with torch.no_grad():
        model.no_memory_embedding.normal_()  # zeros, which would hide whether it is added
    return model


def tiny_sam_hq() -> SamHQModel:
    """SAM-HQ with a 64-pixel frame; the middle layer of three attends globally, whose tokens the decoder fuses."""
    vision = SamHQVisionConfig(
        hidden_size=16,
        output_channels=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=FRAME,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[1, 2],
        num_pos_feats=16,
        initializer_range=0.1,
        mlp_dim=32,
    )
    prompts = SamHQPromptEncoderConfig(hidden_size=32, image_size=FRAME, patch_size=16)
    decoder = SamHQMaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, vit_dim=16
    )
    torch.manual_seed(0)
    return SamHQModel(
        SamHQConfig(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, initializer_range=0.1
        )
    )


def tiny_sam3() -> Sam3TrackerModel:
    """SAM 3's tracker with a 112-pixel frame: 8x8 image embedding, 32x32 logits."""
    vit = Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SAM3_FRAME,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=56,
        initializer_range=0.1,
    )
    vision = Sam3VisionConfig(
        backbone_config=vit,
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        scale_factors=[4.0, 2.0, 1.0],
        initializer_range=0.1,
    )
    prompts = Sam3TrackerPromptEncoderConfig(hidden_size=32, image_size=SAM3_FRAME)
    decoder = Sam3TrackerMaskDecoderConfig(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    torch.manual_seed(0)
    model = Sam3TrackerModel(
        Sam3TrackerConfig(
            vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, initializer_range=0.1
        )
    )
    with torch.no_grad():
        model.no_memory_embedding.normal_()  # zeros, which would hide whether it is added
    return model


def tiny_mobile_sam() -> MobileSamModel:
    """MobileSAM with a 64-pixel frame: 4x4 image embedding, 16x16 logits."""
    vision = {
        "image_size": FRAME,
        "embed_dims": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_sizes": [4, 4, 4, 2],
        "output_channels": 32,
    }
    decoder = {"mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return build_mobile_sam({"vision_config": vision, "mask_decoder_config": decoder, "initializer_range": 0.1})


BUILDERS = {
    "sam": tiny_sam,
    "sam_hq": tiny_sam_hq,
    "sam2": tiny_sam2,
    "sam3_tracker": tiny_sam3,
    "mobile_sam": tiny_mobile_sam,
}
