"""The run of a recipe, whatever its method."""

from pathlib import Path

from fewlabel.pipeline.instance_run import InstanceRun
from fewlabel.pipeline.run import Run
from fewlabel.pipeline.staged import StagedRun
from fewlabel.recipe import AnyRecipe, InstanceRecipe


def run_of(
    recipe: AnyRecipe, path: Path, *, keep_going: bool = False, redo: bool = False, device: str = "cpu"
) -> StagedRun:
    """A run of a recipe in a folder; see `StagedRun` for the arguments."""
    if isinstance(recipe, InstanceRecipe):
        return InstanceRun(recipe, path, keep_going=keep_going, redo=redo, device=device)
    return Run(recipe, path, keep_going=keep_going, redo=redo, device=device)
