"""What a checkpoint on disk is: family, size, licence and how to use it; only its header is read where there is one."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewlabel.core.errors import ModelError
from fewlabel.core.files import sha256_file
from fewlabel.sam.catalogue import ENTRIES, LICENCES, MODEL_TYPES, find
from fewlabel.sam.nano import NANO_FOLDER

CONFIG = "config.json"
Shapes = Mapping[str, tuple[int, ...]]

# Encoder of each family in checkpoints of ours and of transformers: the tensor whose first or last axis (the index) is
# the channels of the first block, and what the names of blocks begin with.
ENCODERS = {
    "sam": ("vision_encoder.pos_embed", -1, "vision_encoder.layers."),
    "sam2": ("vision_encoder.backbone.patch_embed.projection.weight", 0, "vision_encoder.backbone.blocks."),
    "sam3_tracker": (
        "vision_encoder.backbone.embeddings.patch_embeddings.projection.weight",
        0,
        "vision_encoder.backbone.layers.",
    ),
    "mobile_sam": ("vision_encoder.patch_embed.2.conv.weight", 0, "vision_encoder.stages."),
}
HQ_TOKEN = "mask_decoder.hq_token.weight"


@dataclass(frozen=True)
class Description:
    """What a checkpoint is.

    Attributes:
        path: Folder or file.
        form: "checkpoint folder", "weights without config.json" or "original checkpoint".
        family: A key of `fewlabel.sam.family.FAMILIES`.
        variant: The model's size in words.
        parameters: Number of stored values, those of SAM 2's memory for videos included where they are there.
        side: Side of the network's square input in pixels; None where nothing tells.
        sha256: Of each file with weights, by file name.
        licence: Of the published weights of this family.
        use: What to do to load it.
    """

    path: Path
    form: str
    family: str
    variant: str
    parameters: int
    side: int | None
    sha256: Mapping[str, str]
    licence: str
    use: str


def describe(path: Path) -> Description:
    """Say what a checkpoint is.

    Args:
        path: A folder with `config.json` and safetensors, a `.safetensors` file, an original `.pth` or `.pt`, or the
            name of the embedded weights, nano.

    Returns:
        The description.

    Raises:
        ModelError: There is no such path, it is damaged or holds objects that could run code, or it is another model.
    """
    if path.is_dir():
        return _describe_folder(path)
    if not path.is_file():
        if str(path) == "nano":
            return _describe_folder(NANO_FOLDER)
        if (entry := find(str(path))) is not None:
            raise ModelError(
                f"{path} is a name and no file: {entry.title}, {entry.parameters:,} parameters, {entry.licence}, from"
                f" {entry.origin}; give the folder or file of a copy, or use the name, as in --sam {path}."
            )
        raise ModelError(f"{path} does not exist; give a checkpoint's folder or file.")
    if path.suffix != ".safetensors":
        return _describe_original(path)
    shapes = read_shapes(path)
    family = _family_of(shapes)
    if family is None:
        return _describe_original(path)
    variant, side = _variant(family, shapes)
    sha256 = {path.name: sha256_file(path)}
    use = f"put its {CONFIG} beside it and give the folder, as in --sam {path.parent}"
    form = f"weights without {CONFIG}"
    if (path.parent / CONFIG).is_file():
        form, use = "weights of a checkpoint folder", f"give the folder, as in --sam {path.parent}"
    return Description(path, form, family, variant, _count(shapes), side, sha256, LICENCES[family], use)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's configuration.

    Raises:
        ModelError: `config.json` is not there or is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder} has no {CONFIG}; give a folder with {CONFIG} and model.safetensors.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not a model configuration ({error}); restore the checkpoint.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model configuration but a {type(config).__name__}; restore the checkpoint.")
    return config


def family_of_type(model_type: str, name: str) -> str:
    """The family of a configuration's `model_type`.

    Args:
        model_type: As in `config.json`.
        name: The checkpoint's name, for the message.

    Raises:
        ModelError: It is no family of SAM.
    """
    family = MODEL_TYPES.get(model_type)
    if family is None:
        raise ModelError(
            f"{name} holds a model of type {model_type!r}, expected one of {', '.join(MODEL_TYPES)}; choose a "
            "checkpoint from `fewlabel sam list`."
        )
    return family


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header.

    Raises:
        ModelError: It is not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); download the checkpoint again.") from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: `model.safetensors` where there is one, else all its safetensors.

    A training's folder also holds its own weights and checkpoint, which are no part of the model.
    """
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def stored_shapes(folder: Path, family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a folder's weights, after checking that they are of the family that its configuration names.

    Raises:
        ModelError: There are no safetensors, one of them is damaged, or they are of another family or model.
    """
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{folder} has a {CONFIG} but no .safetensors; download the checkpoint again.")
    shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    stored = _family_of(shapes)
    if stored != family:
        raise ModelError(
            f"{folder / CONFIG} describes a {family!r} model, but the weights beside it are of "
            f"{'another model' if stored is None else repr(stored)}; download the checkpoint again."
        )
    return shapes


def _describe_folder(folder: Path) -> Description:
    """A folder with a configuration."""
    config = read_config(folder)
    family = family_of_type(str(config.get("model_type")), str(folder))
    shapes = stored_shapes(folder, family)
    variant, side = _variant(family, shapes)
    prompts = config.get("prompt_encoder_config")
    given = prompts.get("image_size") if isinstance(prompts, dict) else None
    return Description(
        folder,
        "checkpoint folder",
        family,
        variant,
        _count(shapes),
        given if isinstance(given, int) else side,
        {file.name: sha256_file(file) for file in weight_files(folder)},
        LICENCES[family],
        f"give the folder, as in --sam {folder}",
    )


def _describe_original(path: Path) -> Description:
    """A checkpoint in its authors' names."""
    from fewlabel.sam.convert import identify, read_original

    tensors = read_original(path)
    try:
        kind = identify(tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    count = sum(value.numel() for value in tensors.values())
    use = f"fewlabel sam convert {path} OUT"
    if kind.family == "sam_hq":
        use = "originals of SAM-HQ are not converted; use --sam sam-hq-vit-b, -l or -h"
    return Description(
        path,
        "original checkpoint",
        kind.family,
        kind.variant,
        count,
        None,
        {path.name: sha256_file(path)},
        LICENCES[kind.family],
        use,
    )


def _family_of(shapes: Shapes) -> str | None:
    """The family that tensors belong to by their names; None for another model, and for original names."""
    names = {name.removeprefix("tracker_model.").replace("detector_model.", "") for name in shapes}
    if not any(name.startswith("mask_decoder.transformer.") for name in names):
        return None
    if HQ_TOKEN in names:
        return "sam_hq"
    return next(
        (family for family, (_, _, blocks) in ENCODERS.items() if any(name.startswith(blocks) for name in names)), None
    )


def _variant(family: str, shapes: Shapes) -> tuple[str, int | None]:
    """The published model of a family with as many channels and blocks, and its side; several share an encoder."""
    tensor, axis, prefix = ENCODERS["sam" if family == "sam_hq" else family]
    named = {name.replace("detector_model.", ""): shape for name, shape in shapes.items()}
    channels = named[tensor][axis] if named.get(tensor) else 0
    blocks = len(
        {name[len(prefix) :].split(".mlp.")[0] for name in named if name.startswith(prefix) and ".mlp." in name}
    )
    found = [entry for entry in ENTRIES if entry.family == family and entry.encoder == (channels, blocks)]
    if not found:
        return f"of its own size ({blocks} blocks, {channels} channels)", None
    return " or ".join(entry.title for entry in found), found[0].side


def _count(shapes: Shapes) -> int:
    """Number of values in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())
