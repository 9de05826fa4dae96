"""An exponential moving average of the trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name.

    Args:
        model: any network.

    Returns:
        Name to parameter, in the order of ``model.named_parameters()``; a parameter under two names is listed once.
    """
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


class Ema:
    """Averaged copy of a model's trainable parameters (Polyak averaging with a warm-up).

    Update ``n`` (from 1) uses the rate ``d = min(decay, (1 + n) / (10 + n))``, so that the random start is forgotten
    within the first steps: ``average = d * average + (1 - d) * parameter``. Frozen parameters are not copied, so a big
    frozen encoder costs no memory, and buffers (running statistics) stay those of the model itself.

    Attributes:
        decay: upper limit of the rate, in [0, 1).
        updates: number of updates so far.
        weights: parameter name to averaged tensor, of the parameter's shape, dtype and device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start the average at the model's present parameters.

        Args:
            model: the network that is trained.
            decay: upper limit of the rate, in [0, 1).

        Raises:
            ValueError: ``decay`` lies outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average lies in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in trainable(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present parameters, once per optimiser step.

        Args:
            model: the network that the average was made from.
        """
        self.updates += 1
        rate = self.rate()
        parameters = trainable(model)
        averages = [self.weights[name] for name in parameters]
        if averages:
            torch._foreach_lerp_(averages, [value.detach() for value in parameters.values()], 1 - rate)

    def rate(self) -> float:
        """Share of the average that update number `updates` keeps."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the averaged parameters into the model.

        Args:
            model: the network that the average was made from.
        """
        for name, value in trainable(model).items():
            value.copy_(self.weights[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model holds the averaged parameters; afterwards its own again, bit for bit.

        Args:
            model: the network that the average was made from.
        """
        kept = {name: value.detach().clone() for name, value in trainable(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in trainable(model).items():
                    value.copy_(kept[name])


class BurnInEma(Ema):
    """An average that begins when the student is worth being averaged: until then it is the model itself.

    For the first `burn_in` updates the average is a copy of the parameters; afterwards it moves by `decay` without any
    warm-up. So the average after update `burn_in` equals the model bit for bit, as a teacher that is replaced by the
    student at that step (Liu et al., "Unbiased Teacher", ICLR 2021; Guided Distillation, WACV 2024).

    Attributes:
        burn_in: Number of updates that copy.
    """

    def __init__(self, model: nn.Module, decay: float, burn_in: int) -> None:
        """Start at the model's present parameters.

        Args:
            model: The network that is trained.
            decay: Rate of the average after the burn-in, in [0, 1).
            burn_in: Number of updates that copy, 0 or more.
        """
        super().__init__(model, decay)
        self.burn_in = burn_in

    def rate(self) -> float:
        """Share of the average that the last update kept."""
        return 0.0 if self.updates <= self.burn_in else self.decay
