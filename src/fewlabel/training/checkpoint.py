"""Weights and training states on disk: safetensors only, each file swapped in whole."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewlabel.core.errors import ModelError, RunError
from fewlabel.core.files import atomic_path
from fewlabel.training.ema import Ema, trainable

Taken = TypeVar("Taken")


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds: ``tensors`` by name and ``metadata``, strings by name."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def learnt_state(model: nn.Module) -> dict[str, Tensor]:
    """What training can change: the trainable parameters and all persistent buffers.

    Args:
        model: any network; parameters without ``requires_grad`` (a frozen encoder) are left out.

    Returns:
        State-dict name to tensor (not copied).
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state: dict[str, Tensor] = {name: value.detach() for name, value in trainable(model).items()}
    for name, value in model.state_dict().items():
        if name not in parameters and isinstance(value, Tensor):
            state[name] = value
    return state


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a network's state, sorted by name; lower-case hexadecimal.

    The state is that of `state_dict`, frozen parameters and persistent buffers included.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that is either complete or not there.

    Args:
        path: the file; parents are created, an older file is replaced.
        tensors: name to tensor of any dtype, device and memory layout.
        metadata: strings for the file's header.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        save_file(plain, part, metadata=dict(metadata))


def read_tensors(path: Path) -> TensorFile:
    """Read a safetensors file.

    Args:
        path: the file.

    Returns:
        All its tensors, on the CPU and contiguous, and its metadata.

    Raises:
        ModelError: the file is missing or not a safetensors file.
    """
    return _open(
        path,
        lambda file: TensorFile({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})),  # noqa: SIM118
    )


def _open(path: Path, take: Callable[[Any], Taken]) -> Taken:
    """Open a safetensors file and take something out of it, with readable errors."""
    try:
        with safe_open(path, framework="pt") as file:
            return take(file)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: there is no such weights file; check the path") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); remove it and make it again") from error


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the learnt state of a model (see `learnt_state`).

    Args:
        path: the safetensors file.
        model: any network.
        metadata: strings for the file's header.
    """
    write_tensors(path, learnt_state(model), metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """Read only the strings in a safetensors file's header.

    Raises:
        ModelError: the file is missing or not a safetensors file.
    """
    return _open(path, lambda file: dict(file.metadata() or {}))


def load_weights(path: Path, model: nn.Module) -> dict[str, str]:
    """Load what `save_weights` wrote, in place; parameters that the file leaves out must be frozen ones.

    Args:
        path: the safetensors file.
        model: a network of the same architecture.

    Returns:
        The file's metadata.

    Raises:
        ModelError: the file cannot be read, or its names or shapes are not the model's.
    """
    file = read_tensors(path)
    _copy_into(path, model, file.tensors)
    return file.metadata


@torch.no_grad()
def _copy_into(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's entries of the same name, after checking names and shapes."""
    state = model.state_dict()
    name = type(model).__name__
    if unknown := sorted(set(tensors) - set(state)):
        raise ModelError(
            f"{path}: holds {unknown[0]!r} ({len(unknown)} such tensors), which {name} has not; "
            "load it into the architecture that it was saved from"
        )
    if missing := sorted(set(learnt_state(model)) - set(tensors)):
        raise ModelError(
            f"{path}: lacks {missing[0]!r} ({len(missing)} such tensors) of {name}; "
            "load it into the architecture that it was saved from"
        )
    for key, value in tensors.items():
        if state[key].shape != value.shape:
            raise ModelError(
                f"{path}: {key!r} has shape {tuple(value.shape)}, {name} expects {tuple(state[key].shape)}; "
                "load it into the architecture that it was saved from"
            )
    for key, value in tensors.items():
        state[key].copy_(value)


def save_checkpoint(
    path: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write everything that an exact continuation needs into ONE file, so that no mixture of two states can exist.

    Args:
        path: the safetensors file. Tensor names start with ``model.``, ``ema.`` or ``optimizer.``.
        model: the network.
        ema: the moving average of its parameters.
        optimizer: an optimiser over `trainable(model)` whose state holds tensors only (AdamW).
        state: plain JSON values (step, fingerprint, ...), kept in the file's header.
    """
    tensors = {f"model.{name}": value for name, value in learnt_state(model).items()}
    tensors |= {f"ema.{name}": value for name, value in ema.weights.items()}
    for name, value in trainable(model).items():
        for key, entry in optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(entry)
    write_tensors(path, tensors, {"state": json.dumps({**state, "ema_updates": ema.updates})})


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint without touching a model.

    Args:
        path: what `save_checkpoint` wrote.

    Returns:
        The plain state and the tensors by prefixed name.

    Raises:
        RunError: the file cannot be read or is not a checkpoint.
    """
    try:
        file = read_tensors(path)
        return json.loads(file.metadata["state"]), file.tensors
    except (ModelError, KeyError, ValueError) as error:
        raise RunError(f"{path}: not a readable checkpoint; remove it to start this training again") from error


@torch.no_grad()
def load_checkpoint(
    path: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put a checkpoint's tensors into the model, its average and its optimiser.

    Args:
        path: the checkpoint's file, for messages.
        model: the network, of the architecture that was saved.
        ema: its moving average.
        optimizer: its optimiser.
        tensors: from `load_state`.

    Raises:
        ModelError: names or shapes are not the model's.
    """

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    _copy_into(path, model, part("model."))
    averages, moments = part("ema."), part("optimizer.")
    optimizer.state.clear()
    parameters = trainable(model)
    for name, average in ema.weights.items():
        average.copy_(averages[name])
    for full, entry in moments.items():
        name, _, key = full.rpartition(".")
        value = parameters[name]
        # Moments take the parameter's memory layout, as the optimiser made them: a fused kernel walks both in step.
        optimizer.state[value][key] = entry if key == "step" else torch.empty_like(value).copy_(entry)
