"""Tiny random SAM models: the real classes at a size that runs in milliseconds."""

import torch
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

FRAME = 64


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
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
