"""The one training loop: exact resume, atomic checkpoints, averaged weights, a guard against non-finite losses."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fewlabel.core.errors import RunError
from fewlabel.core.files import sha256_json
from fewlabel.core.progress import progress
from fewlabel.training import ranks
from fewlabel.training.checkpoint import (
    load_checkpoint,
    load_state,
    load_weights,
    read_metadata,
    save_checkpoint,
    save_weights,
)
from fewlabel.training.ema import Ema, trainable
from fewlabel.training.log import LOG, cut_log
from fewlabel.training.signals import signals

WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint.safetensors"
UNESSENTIAL = {"checkpoint_seconds", "log_every"}  # options that the weights do not depend on

StepLoss = Callable[[nn.Module, int], dict[str, Tensor]]


class LoopConfig(BaseModel):
    """Options of a training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, description="Optimiser steps.")
    batch: int = Field(default=8, ge=1, description="Images or crops in a step.")
    lr: float = Field(default=1e-3, gt=0, description="Highest learning rate of AdamW.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Decoupled decay of weight matrices and kernels.")
    warmup: int = Field(
        default=100, ge=0, description="Steps of linear warm-up; at most a fifth of all steps are used."
    )
    clip: float = Field(default=1.0, ge=0, description="Highest norm of the whole gradient; 0 turns clipping off.")
    ema: float = Field(
        default=0.99, ge=0, lt=1, description="Decay of the moving average of the weights; 0 turns it off."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 runs the network in bfloat16 autocast."
    )
    checkpoint_seconds: float = Field(default=60, ge=0, description="Seconds between checkpoints.")
    log_every: int = Field(default=20, ge=1, description="Steps between lines of the log.")


@dataclass(frozen=True)
class FitResult:
    """What a training did: optimiser ``steps``, ``seconds`` of all its sessions, and the ``folder`` of its files."""

    steps: int
    seconds: float
    folder: Path


def learning_rate(step: int, config: LoopConfig) -> float:
    """Rate of one step: linear warm-up, then half a cosine that would reach 0 at ``config.steps``.

    Args:
        step: from 0.
        config: gives ``lr``, ``warmup`` and ``steps``.

    Returns:
        The learning rate, in (0, ``config.lr``].
    """
    warmup = min(config.warmup, config.steps // 5)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.steps - warmup)))


def fit(
    model: nn.Module,
    step_loss: StepLoss,
    config: LoopConfig,
    folder: Path,
    *,
    seed: int,
    label: str,
    device: str | torch.device = "cpu",
    fingerprint: str = "",
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
    describe: Callable[[int], str] | None = None,
    ema: Ema | None = None,
    slow: Mapping[str, float] | None = None,
) -> FitResult:
    """Train a model, or go on where an earlier call in the same folder was stopped.

    On the CPU an interrupted and resumed training ends with the same weights, bit for bit, as one that was not
    interrupted, provided that ``step_loss`` is a pure function of the model and the step. The folder receives
    ``log.jsonl`` while training, ``checkpoint.safetensors`` from time to time and on SIGTERM or SIGINT, and at the end
    ``weights.safetensors`` (averaged trainable parameters and all buffers). A finished folder is only loaded.

    Args:
        model: its parameters with ``requires_grad`` are optimised by AdamW; ends in eval mode on ``device`` with the
            averaged weights.
        step_loss: ``(model, step from 0) -> {"loss": scalar that is minimised, other scalars for the log}``. It draws
            its own batch from ``numpy.random.default_rng([seed, step])``. Torch's global generator is seeded by
            (seed, step) before each call. Of n processes that train together (see `training.ranks`) number r is given
            ``n · step + r``, so that no two see the same batch.
        config: options.
        folder: made when missing; belongs to this training alone.
        seed: seed of the torch generator; part of the fingerprint.
        label: a few words for the progress line.
        device: where the model trains.
        fingerprint: hash of everything else that the result depends on (data, other models).
        validate: ``model -> figures``, called with the averaged weights in eval mode; the figures go to the log.
        validate_every: steps between validations; with 0 only the last step is validated.
        describe: ``step from 0 -> which images its batch holds``, asked when that step's loss or gradient is not
            finite, for the error's sentence.
        ema: the average that is kept, for a ``step_loss`` that looks at it: made of ``model`` on ``device`` with
            ``config.ema``; a resumed training fills it before the first step. By default one of its own.
        slow: start of a parameter's name to the factor on its learning rate, such as 0.1 for a pretrained backbone.

    Returns:
        Steps, seconds and folder.

    Raises:
        RunError: the folder belongs to a training with other settings, a loss or gradient is not finite (the sentence
            names the step and its images; the weights were not touched and the last checkpoint stays), or the model
            has nothing to train.
        KeyboardInterrupt: SIGTERM or SIGINT arrived; the state was saved first.
    """
    model.to(device)
    if not trainable(model):
        raise RunError(f"{label}: {type(model).__name__} has no trainable parameter; set requires_grad on some of them")
    identity = _identity(model, config, seed, fingerprint)
    finished = folder / WEIGHTS
    if finished.exists():
        metadata = read_metadata(finished)
        _check_identity(finished, metadata.get("fingerprint", ""), identity)
        load_weights(finished, model)
        model.eval()
        return FitResult(config.steps, float(metadata["seconds"]), folder)
    folder.mkdir(parents=True, exist_ok=True)
    session = _Session(model, config, folder, identity, ema, slow or {})
    session.resume()
    shown = progress(label, config.steps, session.step) if ranks.is_first() else nullcontext(_silent)
    with signals() as stopped, shown as advance:
        model.train()
        while session.step < config.steps:
            terms = session.advance(step_loss, seed, label, describe)
            advance(session.step, f"loss {terms['loss']:.4f}")
            last = session.step == config.steps
            if validate is not None and (last or (validate_every and session.step % validate_every == 0)):
                session.validate(validate)
            asked = session.stop_asked(bool(stopped))
            if asked or session.due():
                session.save()
            if asked:
                raise KeyboardInterrupt(f"{label}: stopped after step {session.step}; run again to go on")
    return session.finish(label)


class _Session:
    """One process's share of a training: the moving parts and where they are written."""

    def __init__(
        self,
        model: nn.Module,
        config: LoopConfig,
        folder: Path,
        identity: str,
        ema: Ema | None = None,
        slow: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.config, self.folder, self.identity = model, config, folder, identity
        self.parameters = list(trainable(model).values())
        self.optimizer = torch.optim.AdamW(_groups(model, config, slow or {}), lr=config.lr, fused=True)
        self.ema = Ema(model, config.ema) if ema is None else ema
        self.step = 0
        self.window: dict[str, float] = {}  # sums of the logged terms since the last line
        self.before = 0.0  # seconds of earlier sessions
        self.began = self.saved = time.monotonic()

    def seconds(self) -> float:
        """Training time of all sessions."""
        return self.before + time.monotonic() - self.began

    def resume(self) -> None:
        """Load the checkpoint if there is one, and cut the log back to its step."""
        path = self.folder / CHECKPOINT
        ranks.first_only(lambda: _remove_leftovers(path))
        if path.exists():
            state, tensors = load_state(path)
            _check_identity(path, state["fingerprint"], self.identity)
            load_checkpoint(path, self.model, self.ema, self.optimizer, tensors)
            self.step, self.window, self.before = state["step"], state["window"], state["seconds"]
            self.ema.updates = state["ema_updates"]
        ranks.first_only(lambda: cut_log(self.folder / LOG, self.step))

    def advance(
        self, step_loss: StepLoss, seed: int, label: str, describe: Callable[[int], str] | None
    ) -> dict[str, float]:
        """One optimiser step; returns the values of its terms."""
        step, config = self.step, self.config
        rate = learning_rate(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batch = step * ranks.size() + ranks.rank()
        torch.manual_seed(_step_seed(seed, batch))
        device = self.parameters[0].device.type
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            losses = step_loss(self.model, batch)
        losses["loss"].backward()
        ranks.average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip or math.inf)
        # One transfer per step, whatever the number of terms.
        packed = ranks.mean(
            torch.stack([norm.detach().float(), *(value.detach().float() for value in losses.values())])
        )
        values = dict(zip(["gradient_norm", *losses], packed.tolist(), strict=True))
        broken = [name for name in ("loss", "gradient_norm") if not math.isfinite(values[name])]
        if broken:
            images = f" on {describe(batch)}" if describe else ""
            saved = (self.folder / CHECKPOINT).exists()
            kept = "the last good checkpoint is kept" if saved else "no checkpoint was written yet"
            raise RunError(
                f"{label}: {broken[0]} is {values[broken[0]]} at step {step}{images} ({self.folder}; terms "
                f"{ {name: value for name, value in values.items() if name in losses} }), expected a finite number; "
                f"{kept}: look at that batch, or lower lr and train in a new folder"
            )
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        self._log(values, rate)
        return values

    def _log(self, values: dict[str, float], rate: float) -> None:
        """Add to the window's sums and write their means when the window is full."""
        every = self.config.log_every
        self.window = {name: self.window.get(name, 0.0) + value for name, value in values.items()}
        if self.step % every == 0 or self.step == self.config.steps:
            count = (self.step - 1) % every + 1
            means = {name: total / count for name, total in self.window.items()}
            self.write({"step": self.step, "lr": rate, **means, "seconds": round(self.seconds(), 3)})
            self.window = {}

    def write(self, line: dict[str, Any]) -> None:
        """Append one line to the log."""
        if not ranks.is_first():
            return
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def validate(self, validate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Log the figures of the averaged weights."""
        self.model.eval()
        with self.ema.applied(self.model), torch.no_grad():
            figures = validate(self.model)
        self.model.train()
        self.write({"step": self.step, "val": figures})

    def stop_asked(self, here: bool) -> bool:
        """Whether any rank was asked to stop: all of them stop after the same step."""
        return (
            bool(ranks.mean(torch.tensor(float(here), device=self.parameters[0].device)) > 0)
            if ranks.size() > 1
            else here
        )

    def due(self) -> bool:
        """Whether a checkpoint is to be written now; none is needed right before the end."""
        return self.step < self.config.steps and time.monotonic() - self.saved >= self.config.checkpoint_seconds

    def save(self) -> None:
        """Write the checkpoint."""
        if not ranks.is_first():
            return
        state = {
            "fingerprint": self.identity,
            "step": self.step,
            "window": self.window,
            "seconds": self.seconds(),
        }
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.ema, self.optimizer, state)
        self.saved = time.monotonic()

    def finish(self, label: str) -> FitResult:
        """Put the averaged weights into the model and write them; the checkpoint has then done its work."""
        self.ema.copy_to(self.model)
        self.model.eval()
        seconds = self.seconds()
        metadata = {
            "fingerprint": self.identity,
            "label": label,
            "seconds": repr(round(seconds, 3)),
            "config": self.config.model_dump_json(),
        }

        def write() -> None:
            save_weights(self.folder / WEIGHTS, self.model, metadata)
            (self.folder / CHECKPOINT).unlink(missing_ok=True)

        ranks.first_only(write)
        return FitResult(self.step, seconds, self.folder)


def _groups(model: nn.Module, config: LoopConfig, slow: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters that share decay and factor on the learning rate, in an order that depends on the model alone.

    Decay shrinks kernels and matrices; biases, norms and the few scalars of an operator keep their scale.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for decays in (True, False):
        for name, value in trainable(model).items():
            if (value.ndim > 1) is decays:
                factor = next((factor for start, factor in slow.items() if name.startswith(start)), 1.0)
                groups.setdefault((factor, decays), []).append(value)
    return [
        {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "factor": factor}
        for (factor, decays), parameters in groups.items()
    ]


def _identity(model: nn.Module, config: LoopConfig, seed: int, fingerprint: str) -> str:
    """Hash of all that the weights depend on; how often it is saved and logged does not count."""
    options = config.model_dump(mode="json", exclude=UNESSENTIAL) | (
        {"ranks": ranks.size()} if ranks.size() > 1 else {}
    )
    shapes = {name: list(value.shape) for name, value in trainable(model).items()}
    return sha256_json({"config": options, "seed": seed, "fingerprint": fingerprint, "parameters": shapes})


def _check_identity(path: Path, found: str, expected: str) -> None:
    """Raise unless a file of the folder was made by this very training."""
    if found != expected:
        raise RunError(
            f"{path}: was made by a training with other settings, seed or inputs (fingerprint {found[:12] or 'none'}, "
            f"this one has {expected[:12]}); choose another folder, or remove {path.parent} to train anew"
        )


def _step_seed(seed: int, step: int) -> int:
    """A 63-bit seed that differs between any two (seed, step)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8], "little") >> 1


def _silent(done: int, note: str = "") -> None:
    """Progress that another rank shows."""


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed process left of a file that it was writing."""
    for leftover in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        leftover.unlink()
