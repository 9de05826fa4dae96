"""Options and habits that the commands share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fewlabel.core.errors import RunError

RecipePath = Annotated[Path, typer.Argument(help="Recipe in YAML; `recipes/` holds some.", metavar="RECIPE")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/NAME by default.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change a value, as in split.fraction=0.2; repeatable.")]
Redo = Annotated[bool, typer.Option("--redo", help="Replace stages that other settings made.")]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="List unusable images in rejected.csv and go on.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; the library's choice by default.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, ...; auto takes a GPU where there is one.")]
DataFormat = Annotated[str | None, typer.Option("--format", help="Layout of the data set; recognised by default.")]
MaxPixels = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Largest height x width of an image that is decoded.")
]
AllowSam3 = Annotated[
    bool, typer.Option("--allow-sam3", help="Agree to the licence of SAM 3, which is not Apache-2.0.")
]


def prepare(threads: int | None, device: str) -> str:
    """Set the number of CPU threads, join other processes, choose the device: `auto` is the GPU where there is one."""
    import torch

    from fewlabel.training.ranks import join

    if threads is not None:
        torch.set_num_threads(threads)
    own = join()
    if own is not None and device == "auto":
        return own
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise RunError(
            f"Device {device!r} cannot be used here; give cpu, cuda, cuda:1 or leave --device out."
        ) from None
    return device


def is_recipe(path: Path) -> bool:
    """Whether a path is a recipe, and not a data set: YOLO's are described by a YAML file too."""
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        return False
    from fewlabel.data.readers.yolo import YoloDataset

    return YoloDataset.recognise(path) is None


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM, after which the state has been saved, into a sentence and status 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("fewlabel: stopped; the same command goes on from here.", file=sys.stderr)
        raise typer.Exit(130) from None
