"""From a name to a model: the embedded nano-SAM, a short name, a local checkpoint folder, or a hub id."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewlabel.core.errors import ModelError, first_line
from fewlabel.sam.catalogue import RESTRICTIONS, find
from fewlabel.sam.describe import family_of_type, read_config, stored_shapes
from fewlabel.sam.family import FAMILIES
from fewlabel.sam.nano import NANO_FOLDER
from fewlabel.sam.promptable import PromptableSegmenter


def load(name_or_path: str, *, allow_sam3: bool = False) -> PromptableSegmenter:
    """Load a promptable segmenter.

    Args:
        name_or_path: A short name that `fewlabel sam list` prints, such as "nano" for the weights inside this package;
            a folder with a checkpoint of any family (`config.json` and `model.safetensors`); or the id of one on the
            Hugging Face hub.
        allow_sam3: Whether the licence of SAM 3 has been agreed to; it is printed once, on standard error.

    Returns:
        The model in float32 on the CPU, in evaluation mode, all parameters frozen (`requires_grad` False).

    Raises:
        ModelError: There is no such checkpoint, it is damaged or an original one that has to be converted, it is of
            another model type, its weights are not those of its configuration, or its licence was not agreed to.
    """
    entry = find(name_or_path)
    if entry is not None:
        _check_licence(entry.family, name_or_path, allow_sam3)
    if entry is not None and entry.family == "mobile_sam":
        raise ModelError(
            f"{name_or_path} is not on the hub in a form that can be loaded: fetch {entry.origin}, and give the folder "
            "that it wrote."
        )
    source = str(NANO_FOLDER) if name_or_path == "nano" else (entry and entry.source) or name_or_path
    if Path(source).is_file():
        raise ModelError(
            f"{name_or_path} is a file, expected a folder with config.json and model.safetensors; "
            "`fewlabel sam info` says what it is, and `fewlabel sam convert` makes a folder of an original checkpoint."
        )
    family = family_of_type(_model_type(name_or_path, source), name_or_path)
    _check_licence(family, name_or_path, allow_sam3)
    if Path(source).is_dir():
        stored_shapes(Path(source), family)
    with quiet():
        try:
            model, wrong = FAMILIES[family].load(source)
        except ModelError:
            raise
        except Exception as error:  # transformers, its configurations and safetensors have classes of their own
            raise ModelError(
                f"The weights of {name_or_path} cannot be loaded ({first_line(error)}); download the checkpoint again."
            ) from error
    if wrong:
        raise ModelError(
            f"The weights of {name_or_path} are not those of the {family!r} model that its config.json describes: "
            f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}; download the checkpoint again."
        )
    return PromptableSegmenter(model, family, name_or_path).eval().requires_grad_(False)


def _check_licence(family: str, name: str, agreed: bool) -> None:
    """Refuse a family whose licence asks for an agreement that was not given; say its terms once if it was."""
    terms = RESTRICTIONS.get(family)
    if terms is None:
        return
    if not agreed:
        raise ModelError(
            f"{name} was not loaded because {terms}; if you agree, give --allow-sam3 (`allow_sam3: true` in a "
            "recipe, `allow_sam3=True` in Python), or choose a checkpoint under Apache-2.0 from `fewlabel sam list`."
        )
    _say(f"Licence notice: {terms}; a teacher made from it is a derivative.")


@functools.cache
def _say(notice: str) -> None:
    """Print a notice on standard error, once in a process."""
    print(notice, file=sys.stderr)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars, tables and remarks out of what the user sees; what matters is said in one sentence."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _model_type(name: str, source: str) -> str:
    """Read `model_type` from a checkpoint's configuration."""
    if Path(source).is_dir():
        return str(read_config(Path(source)).get("model_type"))
    try:
        with quiet():
            return str(_hub_config(source).get("model_type"))
    except Exception as error:  # of the network, of the id's form, of the hub's client
        raise ModelError(
            f"{name} is neither a folder nor a checkpoint that can be fetched ({first_line(error)}); use 'nano', the "
            "path of a local checkpoint folder, or a name from `fewlabel sam list` while online."
        ) from error


def _hub_config(source: str) -> dict[str, Any]:
    """The configuration of a hub id, from the hub's cache on this machine where it is there."""
    from huggingface_hub import HfApi
    from transformers import PreTrainedConfig

    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(source, local_files_only=True)[0]
    except OSError:
        HfApi().model_info(source, timeout=10)  # without network this fails at once; fetching would retry for long
        config = PreTrainedConfig.get_config_dict(source)[0]
    return config
