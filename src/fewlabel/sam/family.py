"""What differs between the families of SAM: where the encoder's blocks are, and what the decoder is given.

Everything else, from prompts to frames, is one code for all in `promptable.py`. A family is a handful of answers about
a network with the parts of transformers' `SamModel`; sources are the forward passes of transformers' own classes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of RGB in [0, 1]
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Sam:
    """SAM (Kirillov et al., ICCV 2023): a plain ViT, one image embedding.

    Attributes:
        keep_aspect: Whether images keep their aspect and are padded; otherwise they are squashed to the square.
        statistics: Mean and standard deviation of RGB that images are normalised with.
        model_class: Name of the class in transformers.
    """

    keep_aspect = True
    statistics = IMAGENET
    model_class = "SamModel"

    def blocks(self, model: Any) -> list[nn.Module]:
        """Encoder blocks in order, each of which returns tokens `(B, h, w, C)`."""
        return list(model.vision_encoder.layers)

    def channels(self, model: Any) -> list[int]:
        """Channels C of each block's output."""
        return [int(model.config.vision_config.hidden_size)] * len(self.blocks(model))

    def encode(self, model: Any, pixels: Tensor) -> list[Tensor]:
        """Feature maps `(B, C, h, w)` of pixels `(B, 3, S, S)`; the last is the image embedding."""
        return [model.vision_encoder(pixels).last_hidden_state]

    def decoder_inputs(self, features: list[Tensor]) -> dict[str, Any]:
        """Arguments of the mask decoder that only this family has."""
        return {}

    def load(self, source: str) -> tuple[nn.Module, list[str]]:
        """Load a checkpoint in float32.

        Args:
            source: Folder or hub id.

        Returns:
            The model, and the names of its tensors that the checkpoint lacks or has in another shape.
        """
        import transformers

        model, report = getattr(transformers, self.model_class).from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,  # they are reported below
            output_loading_info=True,
        )
        mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]}
        return model, sorted(mismatched.union(report["missing_keys"]))


class MobileSam(Sam):
    """MobileSAM (Zhang et al., 2023): SAM's decoder on a TinyViT."""

    def blocks(self, model: Any) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(model.vision_encoder.blocks)

    def channels(self, model: Any) -> list[int]:
        """Channels C of each block's output."""
        return [int(channels) for channels in model.vision_encoder.block_channels]

    def load(self, source: str) -> tuple[nn.Module, list[str]]:
        """Load a folder that `fewlabel sam convert` wrote."""
        from pathlib import Path

        from fewlabel.sam.mobile import load_mobile_sam

        return load_mobile_sam(Path(source)), []


class SamHq(Sam):
    """SAM-HQ (Ke et al., NeurIPS 2023): one more output token, which also sees an early layer of the ViT.

    Its masks are the sum of SAM's logits and the new token's; the three masks are ordered by predicted IoU.
    """

    model_class = "SamHQModel"

    def encode(self, model: Any, pixels: Tensor) -> list[Tensor]:
        """The first globally attending block's tokens, which the decoder fuses in, and the image embedding."""
        output = model.vision_encoder(pixels)
        return [output.intermediate_embeddings[0].permute(0, 3, 1, 2), output.last_hidden_state]

    def decoder_inputs(self, features: list[Tensor]) -> dict[str, Any]:
        """The early tokens, and that both paths' logits are added up."""
        return {"intermediate_embeddings": [features[0].permute(0, 2, 3, 1)], "hq_token_only": False}


class Sam2(Sam):
    """SAM 2 and 2.1 (Ravi et al., 2024): a Hiera with a feature pyramid, high-resolution maps for the decoder."""

    keep_aspect = False
    model_class = "Sam2Model"

    def blocks(self, model: Any) -> list[nn.Module]:
        """Encoder blocks in order; Hiera halves the grid between stages."""
        return list(model.vision_encoder.backbone.blocks)

    def channels(self, model: Any) -> list[int]:
        """Channels C of each block's output."""
        return [int(block.dim_out) for block in model.vision_encoder.backbone.blocks]

    def encode(self, model: Any, pixels: Tensor) -> list[Tensor]:
        """The pyramid with the decoder's projections of its two fine levels, highest resolution first."""
        levels = list(model.vision_encoder(pixels).fpn_hidden_states)
        levels[0] = model.mask_decoder.conv_s0(levels[0])
        levels[1] = model.mask_decoder.conv_s1(levels[1])
        # An image has no earlier frames. As in transformers, whose last level may be one that the decoder never sees.
        levels[-1] = levels[-1] + model.no_memory_embedding.view(1, -1, 1, 1)
        return levels[: len(model.backbone_feature_sizes)]

    def decoder_inputs(self, features: list[Tensor]) -> dict[str, Any]:
        """The two fine levels."""
        return {"high_resolution_features": features[:-1]}


class Sam3Tracker(Sam2):
    """The promptable tracker of SAM 3 (Meta, 2025): SAM 2's decoder on a plain ViT with a pyramid of its last layer."""

    statistics = SYMMETRIC
    model_class = "Sam3TrackerModel"

    def blocks(self, model: Any) -> list[nn.Module]:
        """Encoder blocks in order."""
        return list(model.vision_encoder.backbone.layers)

    def channels(self, model: Any) -> list[int]:
        """Channels C of each block's output."""
        return [int(model.vision_encoder.backbone.config.hidden_size)] * len(self.blocks(model))


FAMILIES: Mapping[str, Sam] = MappingProxyType(
    {"sam": Sam(), "sam_hq": SamHq(), "sam2": Sam2(), "sam3_tracker": Sam3Tracker(), "mobile_sam": MobileSam()}
)
