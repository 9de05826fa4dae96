"""`fewlabel data`: public data sets, listed and fetched by name."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fewlabel.cli.common import DataFormat, MaxPixels, stoppable
from fewlabel.core.errors import RunError

app = typer.Typer(help="Data sets: list, get, convert.", no_args_is_help=True)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A data set's folder or file.", metavar="IN")],
    out: Annotated[Path, typer.Argument(help="Folder to make; must be empty or not there yet.", metavar="OUT")],
    to: Annotated[str, typer.Option("--to", help="Format to write: coco, yolo, yolo-boxes, voc, cvat, ...")],
    format: DataFormat = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Write a data set in another format."""
    from fewlabel.data.pixels import MAX_PIXELS
    from fewlabel.data.readers import find_layout, open_folder
    from fewlabel.data.writers import convert

    if format is None:
        print(find_layout(source).sentence())
    dataset = open_folder(source, format or "auto", max_pixels=max_pixels or MAX_PIXELS)
    print(convert(dataset, out, to).sentence())


@app.command("list")
def list_sets() -> None:
    """List the public data sets that can be fetched."""
    from rich.console import Console
    from rich.table import Table

    from fewlabel.data.fetch.catalogue import SETS

    table = Table()
    for heading in ("name", "what it is", "images", "download", "licence"):
        table.add_column(
            heading, justify="right" if heading in ("images", "download") else "left", no_wrap=heading == "name"
        )
    for entry in SETS:
        table.add_row(entry.name, entry.title, f"{entry.images:,}", _size(entry.size), entry.licence)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print("fewlabel data get NAME DIR fetches one; every archive is compared with its published SHA-256 first.")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A name from `data list`.", metavar="NAME")],
    folder: Annotated[Path, typer.Argument(help="Folder to make; must be empty or not there yet.", metavar="DIR")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of the data and cite its authors.")
    ] = False,
) -> None:
    """Fetch a public data set: download, verify, unpack. The same command goes on after a break."""
    from fewlabel.data.fetch.catalogue import find_set
    from fewlabel.data.fetch.get import SOURCE, check_empty, fetch

    public = find_set(name)
    check_empty(folder)
    rows = {
        "name": f"{public.name}: {public.title}",
        "home": public.home,
        "images": f"{public.images:,}; {_size(public.size)} to download",
        "licence": public.licence,
        "cite": public.citation,
    }
    for key, value in rows.items():
        print(f"{key:<9}{value}")
    if not accept_licence:
        if not sys.stdin.isatty():
            raise RunError(f"The licence of {name} must be accepted first: read it, then add --accept-licence.")
        if not typer.confirm("Do you accept the licence, and will you cite the authors?"):
            raise RunError(f"The licence of {name} was not accepted: nothing is fetched.")
    with stoppable():
        found = fetch(public, folder, accepted=True)
    print(f"{name}: {found.files} files, {found.size / 1e6:.1f} MB in {found.folder}, described in {SOURCE}")
    print(f"layout   {public.layout}")


def _size(size: int | None) -> str:
    """Bytes for a reader."""
    return "size not known" if size is None else f"{size / 1e6:,.0f} MB"
