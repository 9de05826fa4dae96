"""From a name to a model: the embedded nano-SAM, a local checkpoint folder, or a hub id."""

import json
from pathlib import Path
from typing import Any

import torch

from fewlabel.core.errors import ModelError
from fewlabel.sam.nano import NANO_FOLDER
from fewlabel.sam.promptable import PromptableSegmenter

# `model_type` of a transformers checkpoint -> family. SAM 2's official checkpoints are stored as the video model,
# which holds the image model's weights under the same names.
FAMILIES = {"sam": "sam", "sam2": "sam2", "sam2_video": "sam2"}


def load(name_or_path: str) -> PromptableSegmenter:
    """Load a promptable segmenter.

    Args:
        name_or_path: "nano" for the weights inside this package, a folder with a transformers checkpoint
            (`config.json` and `model.safetensors`) of SAM or SAM 2, or the id of one on the Hugging Face hub.

    Returns:
        The model in float32 on the CPU, in evaluation mode, all parameters frozen (`requires_grad` False).

    Raises:
        ModelError: There is no such checkpoint, it is damaged, or it is of another model type.
    """
    source = str(NANO_FOLDER) if name_or_path == "nano" else name_or_path
    family = FAMILIES.get(_model_type(name_or_path, source))
    if family is None:
        raise ModelError(
            f"{name_or_path} holds a model of type {_model_type(name_or_path, source)!r}, expected one of "
            f"{', '.join(FAMILIES)}; choose a SAM or SAM 2 checkpoint in transformers format."
        )
    from transformers import Sam2Model, SamModel
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = (SamModel if family == "sam" else Sam2Model).from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"The weights of {name_or_path} cannot be loaded ({_first_line(error)}); download the checkpoint again."
        ) from None
    except Exception as error:  # safetensors raises its own class, which derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelError(
            f"The weights of {name_or_path} are damaged ({_first_line(error)}); download the checkpoint again."
        ) from None
    finally:
        if bar:
            logging.enable_progress_bar()
    return PromptableSegmenter(model, family, name_or_path).eval().requires_grad_(False)


def _model_type(name: str, source: str) -> str:
    """Read `model_type` from a checkpoint's configuration."""
    folder = Path(source)
    if folder.is_dir():
        path = folder / "config.json"
        if not path.is_file():
            raise ModelError(f"{folder} has no config.json; give a folder with config.json and model.safetensors.")
        try:
            return str(json.loads(path.read_text(encoding="utf-8")).get("model_type"))
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
            raise ModelError(f"{path} is not a model configuration ({error}); restore the checkpoint.") from None
    from transformers import PreTrainedConfig

    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(source)[0]
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name} is neither a folder nor a checkpoint that can be fetched ({_first_line(error)}); use 'nano', the "
            "path of a local checkpoint folder, or a hub id such as facebook/sam-vit-base while online."
        ) from None
    return str(config.get("model_type"))


def _first_line(error: BaseException) -> str:
    """First line of a library's message, without its final stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
