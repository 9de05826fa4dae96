"""The log of a training: one JSON value a line, written as it goes on."""

import json
from pathlib import Path
from typing import Any

from fewlabel.core.files import write_text

LOG = "log.jsonl"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a training's log so far; none where there is no log yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def cut_log(path: Path, step: int) -> None:
    """Drop the lines after a step, and a last line that a kill left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))
