"""The command line: one thin function per command, heavy imports inside, so that help is instant."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fewlabel.cli.common import (
    AllowSam3,
    DataFormat,
    Device,
    KeepGoing,
    MaxPixels,
    Out,
    RecipePath,
    Redo,
    Sets,
    Threads,
    is_recipe,
    prepare,
    stoppable,
)
from fewlabel.cli.data import app as data_app
from fewlabel.cli.pretrain import command as pretrain_command
from fewlabel.cli.sam import app as sam_app
from fewlabel.core.errors import FewlabelError, RunError

app = typer.Typer(
    name="fewlabel",
    help="A few labelled images, a folder of unlabelled ones, and SAM: train a small segmentation model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(sam_app, name="sam")
app.add_typer(data_app, name="data")


@app.callback()
def common(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Options before the command."""
    global _debug
    _debug = debug


_debug = False


def _execute(
    until: str,
    recipe: Path,
    out: Path | None,
    sets: list[str] | None,
    redo: bool,
    keep_going: bool,
    threads: int | None,
    device: str,
    allow_sam3: bool = False,
) -> None:
    """Run the stages of a recipe up to and including one."""
    from fewlabel.pipeline.start import run_of
    from fewlabel.recipe import load_recipe

    settings = load_recipe(recipe, tuple(sets or ()), allow_sam3=allow_sam3)
    folder = out or Path("runs") / settings.name
    run = run_of(settings, folder, keep_going=keep_going, redo=redo, device=prepare(threads, device))
    with stoppable():
        run.execute(run.stage(until))


STAGE_COMMANDS = {
    "run": ("report", "Do every stage of a recipe, from check to report; a stage that is done is skipped."),
    "split": ("split", "Choose the labelled, validation and unlabelled images."),
    "teach": ("teach", "Train the teacher on the labelled images, with SAM's help."),
    "label": ("label", "Let the teacher label the unlabelled images (method scalpel)."),
    "train": ("train", "Train the student on labels and pseudo-labels."),
    "smaller": ("smaller", "Train a lighter network with the trained student as teacher."),
    "baselines": ("baselines", "Train the baselines that the recipe compares with."),
    "eval": ("eval", "Score the students on the test list."),
    "report": (
        "report",
        "Write report.html: scores, curves, pseudo-labels, results; of method scalpel priors and router weights.",
    ),
}


def _add_stage_command(name: str, until: str, help: str) -> None:
    """Register one command of the form `fewlabel NAME RECIPE`; all take the same options."""

    @app.command(name, help=help)
    def command(
        recipe: RecipePath,
        out: Out = None,
        sets: Sets = None,
        redo: Redo = False,
        keep_going: KeepGoing = False,
        threads: Threads = None,
        device: Device = "auto",
        allow_sam3: AllowSam3 = False,
    ) -> None:
        _execute(until, recipe, out, sets, redo, keep_going, threads, device, allow_sam3)


@app.command()
def demo(out: Out = None, threads: Threads = None, device: Device = "auto") -> None:
    """Run the main job on rendered infrared scenes with the embedded nano-SAM."""
    from fewlabel.pipeline.demo import run_demo

    with stoppable():
        run_demo(out or Path("runs") / "demo", device=prepare(threads, device))


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="A data set's folder or file, or a recipe.", metavar="DATA")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report; of a recipe its run folder, runs/NAME.")
    ] = None,
    sets: Sets = None,
    redo: Redo = False,
    keep_going: KeepGoing = False,
    format: DataFormat = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Decode every image and mask once and say what is there and what is wrong."""
    if not data.exists():
        raise RunError(f"{data} does not exist; give the folder of a data set, or a recipe.")
    if is_recipe(data):
        if format is not None or max_pixels is not None:
            raise RunError(
                f"--format and --max-pixels belong to a data set, but {data} is a recipe; use --set data.format=NAME or"
                " --set data.max_pixels=N."
            )
        _execute("check", data, out, sets, redo, keep_going, None, "cpu")
        return
    from fewlabel.data.pixels import MAX_PIXELS
    from fewlabel.pipeline.run import check_folder

    if sets or redo:
        raise RunError(f"--set and --redo belong to a recipe, but {data} is a data set; leave them out.")
    check_folder(data, keep_going=keep_going, out=out, format=format or "auto", max_pixels=max_pixels or MAX_PIXELS)
    if out is not None:
        print(f"written: {out / 'check.html'}, {out / 'check.json'} and {out / 'rejected.csv'}")
    elif keep_going:
        print("nothing was written; --out FOLDER writes a page, check.json and rejected.csv there")


for _name, (_until, _help) in STAGE_COMMANDS.items():
    _add_stage_command(_name, _until, _help)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder with a trained student.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option("--out", help="The ONNX file; RUN/model.onnx by default.")] = None,
    method: Annotated[str, typer.Option("--method", help="Which of the run's students.")] = "fewlabel",
    images: Annotated[int, typer.Option("--images", min=1, help="Test images for the parity proof.")] = 16,
) -> None:
    """Write a student of method scalpel as ONNX and prove that it gives the network's masks or boxes on real images."""
    from fewlabel.pipeline.export import export_run

    export_run(run, out or run / "model.onnx", method=method, images=images)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Run folder whose label stage is done.", metavar="RUN")],
    images: Annotated[list[str], typer.Argument(help="Names of images, without ending.", metavar="IMAGE...")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; RUN/explained.html by default.")] = None,
) -> None:
    """Show what became of images of a run of method scalpel: operators, gates, teacher, pseudo-label, student."""
    from fewlabel.pipeline.explain import explain

    page = out or run / "explained.html"
    explain(run, images, page)
    print(f"explained: {page.resolve()}")


@app.command()
def preview(
    data: Annotated[Path, typer.Argument(help="A recipe, or a data set's folder.", metavar="DATA")],
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("preview.html"),
    images: Annotated[int, typer.Option("--images", min=1, help="Most labelled images shown.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides the choice of images and the crops.")] = 0,
    sets: Sets = None,
    format: DataFormat = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Show what training will see: labelled images and crops of them, placed and varied."""
    from fewlabel.data.pixels import MAX_PIXELS
    from fewlabel.pipeline.preview import preview_folder, preview_recipe

    if not data.exists():
        raise RunError(f"{data} does not exist; give a recipe, or the folder of a data set.")
    if is_recipe(data):
        if format is not None or max_pixels is not None:
            raise RunError(f"--format and --max-pixels belong to a data set, but {data} is a recipe; leave them out.")
        preview_recipe(data, tuple(sets or ()), out, images=images, seed=seed)
    elif sets:
        raise RunError(f"--set belongs to a recipe, but {data} is a data set; leave it out.")
    else:
        limit = max_pixels or MAX_PIXELS
        preview_folder(data, out, images=images, seed=seed, format=format or "auto", max_pixels=limit)
    print(f"preview: {out.resolve()}")


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(help="Exported model (.onnx), or a run folder of instance segmentation.", metavar="MODEL")
    ],
    images: Annotated[Path, typer.Argument(help="An image or a folder of images.", metavar="IMAGES")],
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, overlays and predictions.json.")],
    keep_going: KeepGoing = False,
    max_pixels: MaxPixels = None,
    device: Device = "auto",
) -> None:
    """Find targets with an exported model, or objects with a trained network: masks or boxes, overlays, COCO JSON."""
    from fewlabel.data.pixels import MAX_PIXELS

    most = max_pixels or MAX_PIXELS
    if not model.exists():
        raise RunError(f"{model} does not exist; give an exported .onnx file, or a run folder of method s4m.")
    if model.is_dir():
        from fewlabel.pipeline.instance_predict import predict_instances

        chosen = prepare(None, device)
        found = predict_instances(model, images, out, keep_going=keep_going, device=chosen, max_pixels=most)
    else:
        from fewlabel.deploy.predict import predict_folder

        found = predict_folder(model, images, out, keep_going=keep_going, max_pixels=most)
    rejected = f", {len(found.rejected)} rejected (see {out / 'rejected.csv'})" if found.rejected else ""
    print(f"{found.images} images, {found.targets} targets{rejected}: {out / 'predictions.json'}")


app.command("pretrain")(pretrain_command)


def main() -> None:
    """Entry point: a user's error is one sentence on standard error and status 2."""
    try:
        _main()
    except SystemExit as leaving:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from fewlabel.training.ranks import end

            end(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
        raise


def _main() -> None:
    """Run the command that was typed; ends by SystemExit."""
    try:
        app()
    except FewlabelError as error:
        if _debug:
            raise
        print(f"fewlabel: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if _debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"fewlabel: {where}{error.strerror or error}; check the path, its permissions and the disk.",
            file=sys.stderr,
        )
        sys.exit(2)
