"""`fewlabel data`: the list, and a set fetched from a local server."""

import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fewlabel import cli
from fewlabel.cli import app
from fewlabel.core.errors import DataError
from fewlabel.data.fetch import catalogue
from fewlabel.data.fetch.catalogue import SETS, Archive, PublicSet
from fewlabel.data.readers import open_folder
from fewlabel.data.synth.dataset import write_dataset

Call = Callable[..., tuple[int, str, str]]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublicSet]:
    """A set in the catalogue that a server on this machine offers."""
    served = tmp_path / "served"
    served.mkdir()
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w") as archive:
        archive.writestr("images/a.png", b"picture")
    (served / "small.zip").write_bytes(store.getvalue())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/small.zip"
    entry = PublicSet(
        "small",
        "a small set",
        "http://home.example",
        1,
        "CC BY 4.0",
        "Nobody: Nothing (2020)",
        "images/NAME.png",
        (Archive("small.zip", hashlib.sha256(store.getvalue()).hexdigest(), len(store.getvalue()), (url,)),),
    )
    monkeypatch.setattr(catalogue, "SETS", (*SETS, entry))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield entry
    server.shutdown()
    server.server_close()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the entry point in this process; its status, output and errors."""

    def run(*arguments: str | Path, answer: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fewlabel", "data", *map(str, arguments)])
        stdin = io.StringIO(answer or "")
        monkeypatch.setattr(stdin, "isatty", lambda: answer is not None, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_list_names_every_set_with_its_licence(call: Call) -> None:
    code, out, _ = call("list")
    assert code == 0
    for entry in SETS:
        assert entry.name in out and entry.licence.split()[0] in out
    assert "81 MB" in out and "17,125" in out


def test_get_with_the_licence_accepted(call: Call, public: PublicSet, tmp_path: Path) -> None:
    code, out, _ = call("get", "small", tmp_path / "set", "--accept-licence")
    assert code == 0
    assert "CC BY 4.0" in out and "Nobody: Nothing (2020)" in out and "small: 2 files" in out
    assert (tmp_path / "set" / "images" / "a.png").read_bytes() == b"picture"
    assert (tmp_path / "set" / "SOURCE.json").exists()


def test_get_without_a_terminal_says_what_to_pass(call: Call, public: PublicSet, tmp_path: Path) -> None:
    code, out, err = call("get", "small", tmp_path / "set")
    assert code == 2 and "CC BY 4.0" in out and "Nobody" in out
    assert err == "fewlabel: The licence of small must be accepted first: read it, then add --accept-licence.\n"
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_get_asks_on_a_terminal(answer: str, status: int, call: Call, public: PublicSet, tmp_path: Path) -> None:
    code, out, err = call("get", "small", tmp_path / "set", answer=answer)
    assert code == status and "Do you accept the licence" in out
    assert (tmp_path / "set").exists() == (status == 0)
    assert status == 0 or err == "fewlabel: The licence of small was not accepted: nothing is fetched.\n"


def test_errors_are_one_sentence(call: Call, public: PublicSet, tmp_path: Path) -> None:
    code, _, err = call("get", "smal", tmp_path / "set", "--accept-licence")
    assert code == 2 and err.startswith("fewlabel: There is no public data set 'smal'") and err.count("\n") == 1
    code, out, err = call("get", "small", tmp_path, "--accept-licence")
    assert code == 2 and "is not empty" in err and err.count("\n") == 1 and "licence" not in out
    (tmp_path / "served" / "small.zip").unlink()
    code, _, err = call("get", "small", tmp_path / "set", "--accept-licence")
    assert code == 2 and "answers 404" in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys, fewlabel.cli as c\ntry:\n    c.app(['data', 'list'])\nexcept SystemExit:\n    pass\n"
    code += "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in result.stdout and "bbbc039" in result.stdout


def test_convert_writes_another_format_and_says_what_it_found(tmp_path):
    folder = write_dataset(tmp_path / "scenes", train=3, test=2, seed=0, size=48)
    result = CliRunner().invoke(app, ["data", "convert", str(folder), str(tmp_path / "coco"), "--to", "coco"])
    assert result.exit_code == 0, result.output
    assert "format: sirst, because it holds" in result.output
    before, after = open_folder(folder), open_folder(tmp_path / "coco")
    assert after.format == "coco" and (after.train_ids, after.test_ids) == (before.train_ids, before.test_ids)
    for id in before.train_ids:
        assert before.labelled(id).instances.rles == after.labelled(id).instances.rles
    again = CliRunner().invoke(app, ["data", "convert", str(folder), str(tmp_path / "x"), "--to", "tiff"])
    assert isinstance(again.exception, DataError) and "no data format 'tiff' to write" in str(again.exception)
