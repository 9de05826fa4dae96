"""Several processes that train one network together, as `accelerate launch` starts them; with one all of this is free.

Each process, called a rank, sees batches of its own; gradients are averaged, so all take the same steps. Files are
written by the first rank alone.
"""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewlabel.core.errors import FewlabelError, first_line

Value = TypeVar("Value")

BUCKET = 2**26  # most bytes of gradients that travel in one message
PATIENCE = timedelta(days=7)  # how long ranks wait for the first, which reads, checks and scores whole data sets alone


def join() -> str | None:
    """Join the other processes, if this one was started as one of several.

    Who started it says so in the environment: `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, as
    `accelerate launch` and `torchrun` set them. `ACCELERATE_USE_CPU` leaves GPUs alone.

    Returns:
        The device that is this process's own; None where it is alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"):
        device, backend = "cpu", "gloo"
    else:
        device, backend = f"cuda:{os.environ.get('LOCAL_RANK', '0')}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    # Not by accelerate's PartialState: where it is there, transformers' loss of Mask2Former takes the mean number of
    # objects over the ranks and divides it by their number again, so that masks weigh too much.
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=PATIENCE)
    return device


def end(status: int) -> None:
    """End this process if it is one of several; one that is alone goes on.

    Without the interpreter's own end: its threads that hold connections to ranks that are gone abort there now and
    then, and a run that is done would end with an error.

    Args:
        status: Of the process.
    """
    if size() > 1:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 for the first and for one that is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def first_only(work: Callable[[], Value]) -> Value:
    """Do something in the first rank alone, while the others wait.

    Args:
        work: Its result can be pickled.

    Returns:
        The result, in every rank.

    Raises:
        FewlabelError: The work raised it; then every rank does.
    """
    if size() == 1:
        return work()
    told: list[Any] = [None, None]
    failure: BaseException | None = None
    if is_first():
        try:
            told = [work(), None]
        except BaseException as error:  # the others must not wait for ever, whatever went wrong
            failure = error
            sentence = FewlabelError(f"The first process failed ({first_line(error)}); what it says tells why.")
            told = [None, error if isinstance(error, FewlabelError) else sentence]
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        dist.barrier()  # the first rank ends soon; nobody may be reading from it still
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise told[1]
    result: Value = told[0]
    return result


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks; one that a rank does not have counts as 0 there."""
    if size() == 1:
        return
    bucket: list[nn.Parameter] = []
    held = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and held + parameter.grad.nbytes > BUCKET:
            _average(bucket)
            bucket, held = [], 0
        bucket.append(parameter)
        held += parameter.grad.nbytes
    _average(bucket)


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks; a number that is not finite in one rank is not finite in all."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / size()


def _average(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients of some parameters in one message."""
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat)
    flat /= size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
