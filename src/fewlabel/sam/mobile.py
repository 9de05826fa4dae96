"""MobileSAM: SAM's prompt encoder and mask decoder on a TinyViT encoder (Zhang et al., 2023).

The two reused parts are transformers' own, and so is the interface: `MobileSamModel` is a `SamModel` with its encoder
exchanged. transformers has no such model, so checkpoints are written and read here.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPositionalEmbedding, SamPromptEncoder

from fewlabel.core.errors import DataError, ModelError, first_line
from fewlabel.core.files import atomic_path, read_json, write_json
from fewlabel.sam.keys import SHARED, TIED, sam_decoder_keys, some
from fewlabel.sam.tinyvit import TinyVit, TinyVitConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ENCODER = "image_encoder."

# Names of modules in the original encoder -> ours, applied in this order to the path below "image_encoder.".
RENAMES = (
    (r"^patch_embed\.seq\.", "patch_embed."),
    (r"^layers\.", "stages."),
    (r"\.downsample\.", ".merge."),
    (r"^(stages\.0\.blocks\.\d+)\.conv(?=[123]\.)", r"\1.body.conv"),
    (r"\.conv1\.", ".expand."),
    (r"\.conv2\.", ".depthwise."),
    (r"\.conv3\.", ".project."),
    (r"\.attn\.attention_biases$", ".attention.bias"),
    (r"\.attn\.", ".attention."),
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
)
# The classifier of TinyViT's pre-training on ImageNet is part of the original module and of its checkpoint, but its
# forward pass ends at the neck. Indices of attention biases are not stored by the original (a buffer that is not
# persistent); files that were saved again by other programs may hold them, and they follow from the window alone.
UNUSED = re.compile(
    r"image_encoder\.((norm_head|head)\.(weight|bias)|layers\.\d+\.blocks\.\d+\.attn\.attention_bias_idxs)"
)
COUNTER = "num_batches_tracked"  # of batch normalisation: read in training alone, absent from some files


class MobileSamConfig(PreTrainedConfig):
    """Configuration of MobileSAM; without arguments, that of the published checkpoint.

    Args:
        vision_config: Fields of `TinyVitConfig`.
        prompt_encoder_config: Fields of transformers' `SamPromptEncoderConfig`; frame, stride and channels follow from
            the encoder where left out.
        mask_decoder_config: Fields of transformers' `SamMaskDecoderConfig`; channels follow from the encoder.
        initializer_range: Deviation of the decoder's random weights.
        **kwargs: Fields of every transformers configuration.
    """

    model_type = "mobile_sam"
    sub_configs = {  # read by transformers
        "vision_config": TinyVitConfig,
        "prompt_encoder_config": SamPromptEncoderConfig,
        "mask_decoder_config": SamMaskDecoderConfig,
    }

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        prompt_encoder_config: Mapping[str, Any] | None = None,
        mask_decoder_config: Mapping[str, Any] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        vision = TinyVitConfig(**(vision_config or {}))
        frame = {"image_size": vision.image_size, "patch_size": vision.patch_size}
        channels = {"hidden_size": vision.output_channels}
        masks = channels | {"layer_norm_eps": 1e-5}  # PyTorch's default as in the original, not transformers' 1e-6
        self.vision_config = vision
        self.prompt_encoder_config = SamPromptEncoderConfig(**(frame | channels | dict(prompt_encoder_config or {})))
        self.mask_decoder_config = SamMaskDecoderConfig(**(masks | dict(mask_decoder_config or {})))
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


class MobileSamModel(SamModel):
    """transformers' `SamModel` with a `TinyVit` as its `vision_encoder`."""

    config: MobileSamConfig

    def __init__(self, config: MobileSamConfig) -> None:
        super(SamModel, self).__init__(config)  # not SamModel's own, which would build its ViT
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.prompt_encoder = SamPromptEncoder(config)
        config.mask_decoder_config._attn_implementation = config._attn_implementation
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        self.post_init()
        self.prompt_encoder.shared_embedding = self.shared_image_embedding  # prompts and image cells share one code
        self.vision_encoder = TinyVit(config.vision_config)  # after `post_init`, which would redraw its weights


def build_mobile_sam(config: Mapping[str, Any] | None = None, seed: int = 0) -> MobileSamModel:
    """MobileSAM with random weights.

    Args:
        config: Arguments of `MobileSamConfig`, such as the contents of a `config.json`; the published sizes when None.
        seed: Seed of the weights; the global generator is left as it was.

    Returns:
        The model in float32 on the CPU, in training mode.

    Raises:
        ModelError: The sizes contradict each other, or a value is of another type.
    """
    given = dict(config or {})
    given.pop("model_type", None)
    try:
        settings = MobileSamConfig(**given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MobileSamModel(settings).train()
    except ModelError:
        raise
    except Exception as error:  # each version of transformers refuses a field with a class of its own
        raise ModelError(
            f"MobileSAM cannot be built from this configuration ({first_line(error)}); restore its config.json."
        ) from None


def save_mobile_sam(model: MobileSamModel, folder: Path) -> None:
    """Write the model as `config.json` and `model.safetensors`, each atomically.

    Args:
        model: MobileSAM; its weights are stored in their own precision.
        folder: Made when it is not there; existing files of the two names are replaced.
    """
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name != TIED}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG, json.loads(model.config.to_json_string(use_diff=False)))


def load_mobile_sam(folder: Path) -> MobileSamModel:
    """Read a model that `save_mobile_sam` wrote.

    Args:
        folder: Holds `config.json` with `model_type` "mobile_sam", and `model.safetensors`.

    Returns:
        The model in float32 on the CPU, in evaluation mode.

    Raises:
        ModelError: A file is missing or damaged, is of another model, or lacks or has too many tensors.
    """
    try:
        config = read_json(folder / CONFIG)
    except DataError as error:
        raise ModelError(str(error)) from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != MobileSamConfig.model_type:
        raise ModelError(
            f"{folder / CONFIG} describes a model of type {kind!r}, expected {MobileSamConfig.model_type!r}; give a "
            "folder that `fewlabel sam convert` wrote."
        )
    model = build_mobile_sam(config)
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
        state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        if SHARED in state:
            state[TIED] = state[SHARED]
        model.load_state_dict(state)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; convert the original checkpoint again.") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{path} does not hold the weights that its config.json describes ({first_line(error)}); convert the "
            "original checkpoint again."
        ) from None
    return model.eval()


def mobile_keys(names: Iterable[str], config: Mapping[str, Any] | None = None) -> dict[str, str | None]:
    """Where each tensor of an original MobileSAM checkpoint (`mobile_sam.pt`) goes in `MobileSamModel`.

    Names and shapes of the encoder are those of the module in the authors' repository (ChaoningZhang/MobileSAM,
    `mobile_sam/modeling/tiny_vit_sam.py`), whose loading is strict; the rest is named as in segment-anything. Values
    are taken over as they are: no tensor is transposed, split or merged.

    Args:
        names: Names in the checkpoint.
        config: Arguments of `MobileSamConfig`; the published sizes when None.

    Returns:
        Original name to ours, one to one; None for a tensor that is knowingly unused.

    Raises:
        ModelError: A name belongs to no part of MobileSAM, or a part of its encoder is missing.
    """
    names = list(names)
    keys: dict[str, str | None] = {name: None for name in names if UNUSED.fullmatch(name)}
    keys |= encoder_keys([name for name in names if name.startswith(ENCODER) and name not in keys], config)
    keys |= sam_decoder_keys([name for name in names if not name.startswith(ENCODER)])
    return keys


def encoder_keys(names: Iterable[str], config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The part of `mobile_keys` that begins with `image_encoder.`: each name to that of a tensor of ours.

    Raises:
        ModelError: A name has no counterpart, or a tensor of ours is left without one.
    """
    with torch.device("meta"):
        encoder = TinyVit(TinyVitConfig(**dict((config or {}).get("vision_config") or {})))
    wanted = {f"vision_encoder.{name}" for name in encoder.state_dict()}
    keys = {name: f"vision_encoder.{_rename(name.removeprefix(ENCODER))}" for name in names}
    foreign = sorted(name for name, ours in keys.items() if ours not in wanted)
    missing = sorted(name for name in wanted.difference(keys.values()) if not name.endswith(COUNTER))
    if foreign or missing or len(set(keys.values())) < len(keys):
        raise ModelError(
            f"The encoder of this checkpoint is not MobileSAM's: {len(foreign)} tensors are foreign "
            f"({some(foreign) or 'none'}) and {len(missing)} are missing ({some(missing) or 'none'}); give the "
            "authors' mobile_sam.pt."
        )
    return keys


def _rename(name: str) -> str:
    """One original name of the encoder, without its prefix, in our words."""
    for pattern, ours in RENAMES:
        name = re.sub(pattern, ours, name)
    return name
