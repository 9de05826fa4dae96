"""nano-SAM: a SAM 2 small enough to be pre-trained and adapted on a CPU.

The network is transformers' `Sam2Model` with a four-stage Hiera encoder (Ryali et al., ICML 2023) over a 256-pixel
frame. Patches have stride 2 rather than SAM 2's 4, so the decoder's logits have stride 2 as well: at stride 4 the
best possible mask of a 20-pixel target has an IoU of only about 0.77, at stride 2 about 0.99.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from fewlabel.core.files import atomic_path, write_text
from fewlabel.sam.promptable import PromptableSegmenter

FRAME = 256
NANO_FOLDER = Path(__file__).parent / "weights" / "nano"


def nano_config() -> "object":
    """The `Sam2Config` of nano-SAM.

    Encoder grids are 128, 64, 32 and 16 cells wide; windows of 4, 4, 8 and 8 cells divide them. One block of the third
    stage attends globally. The positional code of prompts has twice SAM's bandwidth because it has a quarter of SAM's
    frequencies and must tell cells of 8 pixels apart.
    """
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    channels, hidden, grid = [16, 32, 96, 192], 64, FRAME // 2
    backbone = Sam2HieraDetConfig(
        hidden_size=channels[0],
        image_size=[FRAME, FRAME],
        patch_kernel_size=[5, 5],
        patch_stride=[2, 2],
        patch_padding=[2, 2],
        window_positional_embedding_background_size=[8, 8],
        blocks_per_stage=[1, 1, 4, 5],
        embed_dim_per_stage=channels,
        num_attention_heads_per_stage=[1, 1, 4, 8],
        window_size_per_stage=[4, 4, 8, 8],
        global_attention_blocks=[4],
        mlp_ratio=2.0,
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=channels[::-1],
        backbone_feature_sizes=[[grid, grid], [grid // 2, grid // 2], [grid // 4, grid // 4]],
        fpn_hidden_size=hidden,
        fpn_top_down_levels=[2, 3],
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=hidden, image_size=FRAME, patch_size=8, scale=2)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=hidden,
        mlp_dim=2048,
        num_attention_heads=4,
        attention_downsample_rate=1,  # 16 channels a head, as in SAM; the default of 2 would leave 8
        iou_head_hidden_dim=hidden,
        # A single mask is always the single-mask token's, in training and in use alike.
        dynamic_multimask_via_stability=False,
    )
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    config.draws_prompts = True  # read by `PromptableSegmenter`
    return config


def build_nano(seed: int) -> PromptableSegmenter:
    """nano-SAM with random weights.

    Args:
        seed: Seed of the initial weights; the global generator is left as it was.

    Returns:
        The segmenter in training mode.
    """
    from transformers import Sam2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam2Model(nano_config())
        # Positions in the image and positions of prompts are compared by attention: they must share one code. The two
        # modules hold separate buffers, which only a trained checkpoint makes equal.
        code = model.shared_image_embedding.positional_embedding
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
        _initialise(model)
    return PromptableSegmenter(model.train(), "sam2", "nano")


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """Draw weights of variance 1 / fan-in, and tokens of variance 1, from the global generator.

    The library's constant deviation of 0.02 suits layers of 768 channels; in these narrow ones it shrinks signals to a
    tenth at every layer, and the three-layer heads of the decoder would hardly learn.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose2d):
            fan_in = module.in_channels  # stride equals kernel: each output pixel sees one tap
        elif isinstance(module, nn.Embedding):
            fan_in = 1
        else:
            continue
        nn.init.trunc_normal_(module.weight, std=fan_in**-0.5, a=-2.0, b=2.0)
    for name, module in model.named_modules():
        if name.endswith(("token_to_image", "image_to_token")):
            # Queries and keys that are projected alike compare positions from the first step: a click attends to its
            # surroundings, and they to it, which independent projections take thousands of steps to find.
            module.q_proj.weight.mul_(1.5)
            module.k_proj.weight.copy_(module.q_proj.weight)
        elif ".neck.convs." in name:  # so that the image's content does not drown its positions
            module.weight.mul_(0.3)
        elif name.endswith(("mask_embed.conv1", "mask_embed.conv2")):  # a blank prompt must not vanish before the norm
            nn.init.normal_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("pos_embed", "pos_embed_window")):  # zeros, which make all cells of a flat image equal
            nn.init.trunc_normal_(parameter, std=0.2)


def save_nano(segmenter: PromptableSegmenter, folder: Path) -> None:
    """Write a SAM 2 model in transformers' layout: `config.json` and half-precision `model.safetensors`.

    Args:
        segmenter: The model; its weights are not changed.
        folder: Existing files of the two names are replaced, each atomically.
    """
    config = segmenter.model.config
    write_text(folder / "config.json", config.to_json_string())
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in segmenter.model.state_dict().items()
    }
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
