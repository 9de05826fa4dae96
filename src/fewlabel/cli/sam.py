"""`fewlabel sam`: which checkpoints there are, what a file is, conversion, and features of images for later."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from fewlabel.cli.common import AllowSam3, Device, Threads, prepare, stoppable

app = typer.Typer(help="Checkpoints of SAM: list, info, convert, embed.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """List the checkpoints with a short name."""
    from rich.console import Console
    from rich.table import Table

    from fewlabel.sam.catalogue import ENTRIES

    table = Table()
    for heading in ("name", "model", "parameters", "input", "licence", "weights"):
        table.add_column(heading, justify="right" if heading in ("parameters", "input") else "left")
    for entry in ENTRIES:
        size = f"{entry.parameters / 1e6:.1f} M"
        table.add_row(entry.alias, entry.title, size, f"{entry.side} px", entry.licence, entry.origin)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print("sam3 asks for --allow-sam3. Parameters are those of the image model, without SAM 2's memory for videos.")


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint's folder, .safetensors, .pth or .pt; or nano.", metavar="PATH")
    ],
) -> None:
    """Say what a checkpoint is, its size, hash and licence, and how to use it."""
    from fewlabel.sam.describe import describe

    found = describe(path)
    rows = {
        "path": str(found.path),
        "form": found.form,
        "family": found.family,
        "model": found.variant,
        "parameters": f"{found.parameters:,} values stored",
        "input": "not stored" if found.side is None else f"{found.side} x {found.side} px",
        "licence": f"{found.licence}, for the published weights",
        "to use it": found.use,
    }
    for key, value in rows.items():
        print(f"{key:<11}{value}")
    for name, digest in found.sha256.items():
        print(f"{'sha256':<11}{digest}  {name}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' .pth or .pt.", metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Argument(help="Folder for config.json and model.safetensors.", metavar="OUT")],
) -> None:
    """Convert an original checkpoint of SAM, SAM 2, SAM 2.1 or MobileSAM."""
    from fewlabel.sam.convert import convert as convert_checkpoint

    done = convert_checkpoint(checkpoint, out)
    print(f"{done.variant}: {done.tensors} tensors in {done.folder}, {len(done.unused)} of the original unused")
    print(f"sha256 {done.sha256}  {checkpoint.name}")
    print(f"sha256 {done.weights_sha256}  {done.folder / 'model.safetensors'}")


@app.command()
def embed(
    images: Annotated[Path, typer.Argument(help="Folder of images.", metavar="IMAGES")],
    sam: Annotated[str, typer.Option("--sam", help="A name from `sam list`, a folder, or a hub id.")] = "nano",
    cache: Annotated[Path, typer.Option("--cache", help="Folder of the cache.")] = Path("runs/embeddings"),
    cache_gb: Annotated[float, typer.Option("--cache-gb", help="Bound on the cache, in 10^9 bytes.")] = 10.0,
    precision: Annotated[str, typer.Option("--precision", help="Of the encoder: fp32 or bf16.")] = "fp32",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the encoder first.")] = False,
    allow_sam3: AllowSam3 = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Encode images once and keep their features for later."""
    chosen = prepare(threads, device)
    from fewlabel.sam.cache import EmbeddingCache, embed_folder, image_files
    from fewlabel.sam.families import load
    from fewlabel.sam.speed import Precision, quicken
    from fewlabel.training.checkpoint import weights_sha256

    image_files(images)  # before anything is loaded or made
    segmenter = load(sam, allow_sam3=allow_sam3).to(chosen)
    quicken(segmenter, cast(Precision, precision), compile)
    with stoppable():
        found = embed_folder(images, EmbeddingCache(cache, segmenter, weights_sha256(segmenter), cache_gb))
    for path, reason in found.rejected:
        print(f"{path}: {reason}", file=sys.stderr)
    print(
        f"{found.images} images: {found.encoded} encoded, {100 * found.hit_rate:.1f} % were there already, "
        f"{len(found.rejected)} cannot be read; {found.held} of them in {cache}, {found.bytes / 1e6:.1f} MB in all"
    )
    if found.held < found.images:
        print(f"{found.images - found.held} did not fit into --cache-gb {cache_gb:g}; raise it to keep all")
