"""Turn the records of a benchmark into the Markdown table of the docs.

    python benchmarks/table.py main-job                              # print it
    python benchmarks/table.py main-job --write docs/results.md      # put it between the markers of that file
    python benchmarks/table.py main-job --check docs/results.md      # fail when the file shows something else

The markers are `<!-- table:main-job -->` and `<!-- /table -->`. The schema of a record is in benchmarks/README.md.
"""

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fewlabel.core.errors import DataError, FewlabelError
from fewlabel.core.files import read_json, write_text

HERE = Path(__file__).parent
ORDER = (
    "labels-only",
    "supervised",
    "synthetic-pretrained",
    "mean-teacher",
    "guided-distillation",
    "guided-plus-structure",
    "guided-plus-refinement",
    "guided-plus-paste",
    "adapter-none",
    "adapter-lora",
    "adapter-conv-lora",
    "adapter-sam-adapter",
    "adapter-conv-experts",
    "teacher",
    "fewlabel",
    "all-labels",
)
METRICS = {"IoU": "IoU %", "nIoU": "nIoU %", "Pd": "Pd %", "Fa": "Fa ppm"}
BOX_METRICS = {"AP50": "AP50 %", "AP": "AP %", "AR50": "AR50 %", "precision": "precision %", "recall": "recall %"}
INSTANCE_METRICS = {"AP": "AP %", "AP50": "AP50 %", "AP75": "AP75 %", "boundary_AP": "boundary AP %"}
SHARES = {"IoU", "nIoU", "Pd", "AR50", *INSTANCE_METRICS}
TEXTS = ("benchmark", "dataset", "split", "method", "student", "device", "torch", "commit", "date")
MEASURED = ("metrics", "fraction", "seed", "steps", "seconds")
OPTIONAL_TEXTS = ("matching", "machine", "sam")
SPEED_NEEDED = ("benchmark", "method", "device", "commit", "date")
Record = dict[str, Any]


def is_number(value: object) -> bool:
    """Whether `value` is a finite number (true and false are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_record(record: Any, path: Path) -> Record:
    """Check one record against the schema of README.md.

    Args:
        record: What the file holds.
        path: The file, named in errors.

    Returns:
        The record as it is.

    Raises:
        DataError: A key is missing, unknown or of the wrong kind, or a value lies outside its range.
    """

    def need(good: bool, what: str) -> None:
        if not good:
            raise DataError(f"{path}: {what}; correct the record or measure it again (schema: benchmarks/README.md).")

    need(isinstance(record, dict), f"the record is a {type(record).__name__}, expected an object")
    speed = str(record.get("benchmark", "")).startswith("speed-")
    needed = SPEED_NEEDED if speed else (*TEXTS, *MEASURED, "recipe")
    missing = [key for key in needed if key not in record]
    need(not missing, f"the record lacks {', '.join(missing)}")
    if speed:
        compared = "ratio" in record and "baseline" in record
        need(compared or "images_per_second" in record, "the record lacks ratio and baseline, or images_per_second")
    else:
        known = {*TEXTS, *MEASURED, *OPTIONAL_TEXTS, "recipe", "pseudo_labels", "peak_rss_mb"}
        unknown = sorted(set(record) - known)
        need(not unknown, f"the record holds the unknown key {', '.join(unknown)}")
    for key in (*TEXTS, *OPTIONAL_TEXTS, "baseline"):
        if key in record:
            need(isinstance(record[key], str) and record[key] != "", f"{key} is {record[key]!r}, expected a text")
    for key in ("seed", "steps"):
        if key in record:
            whole = isinstance(record[key], int) and not isinstance(record[key], bool) and record[key] >= 0
            need(whole, f"{key} is {record[key]!r}, expected a whole number of at least 0")
    for key in ("seconds", "peak_rss_mb", "ratio", "memory_ratio", "images_per_second"):
        if record.get(key) is not None:
            good = is_number(record[key]) and record[key] >= 0
            need(good, f"{key} is {record[key]!r}, expected a number of at least 0")
    if "fraction" in record:
        good = is_number(record["fraction"]) and 0 < record["fraction"] <= 1
        need(good, f"fraction is {record['fraction']!r}, expected a share above 0 and at most 1 (0.1, not 10)")
    if not speed:
        need(isinstance(record["recipe"], dict), f"recipe is a {type(record['recipe']).__name__}, expected an object")
        _check_scores(record["metrics"], "metrics", _metrics(record), need)
    if record.get("pseudo_labels") is not None:
        _check_scores(record["pseudo_labels"], "pseudo_labels", (), need)
    return record  # type: ignore[no-any-return]


def _check_scores(scores: Any, name: str, needed: Iterable[str], need: Callable[[bool, str], None]) -> None:
    """Check metrics: numbers or null, percent in 0..100, Fa from 0, coverage in 0..1."""
    need(isinstance(scores, dict), f"{name} is {scores!r}, expected an object")
    missing = [key for key in needed if key not in scores]
    need(not missing, f"{name} lacks {', '.join(missing)}")
    for key, value in scores.items():
        top = 1 if key == "coverage" else 100 if key in SHARES else math.inf
        good = value is None or (is_number(value) and 0 <= value <= top)
        need(good, f"{name}.{key} is {value!r}, expected null or a number from 0 to {top}")


def load(folder: Path) -> list[Record]:
    """Read and check every record of a folder.

    Args:
        folder: A `results` folder.

    Returns:
        The records, in the order of their file names.

    Raises:
        DataError: There is none, one is wrong, two of the same cell exist, or they were matched by different rules.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataError(f"{folder} holds no records (*.json); run the benchmark's run.py first.")
    records: list[Record] = []
    cells: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        record = check_record(read_json(path), path)
        cell = (*_row_key(record), *_table_key(record), record.get("baseline"), record.get("seed"))
        if cell in cells:
            raise DataError(
                f"{path} and {cells[cell]} record the same cell (method {record['method']}, "
                f"seed {record.get('seed')}); keep one of them, or the mean would count it twice."
            )
        cells[cell] = path
        records.append(record)
    matchings = sorted({record["matching"] for record in records if "matching" in record})
    if len(matchings) > 1:
        raise DataError(
            f"The records in {folder} measured Pd and Fa with different matching rules ({', '.join(matchings)}), "
            "which cannot share a table; measure them again with one rule."
        )
    return records


def mean_sd(values: Sequence[float | None], digits: int = 1) -> str:
    """`mean ± sd` over seeds.

    Args:
        values: One value per seed; None where it was not measured.
        digits: Decimals.

    Returns:
        The mean, with the sample standard deviation (n - 1) when there are at least two values; a dash when one of the
        values is missing, since a mean over fewer seeds than its neighbours would mislead.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def render(records: Sequence[Record]) -> str:
    """Render records as Markdown: one table per data set, split and student, one row per method and fraction.

    Args:
        records: Checked records of one benchmark.

    Returns:
        Markdown text without a final line end.
    """
    if all(record["benchmark"].startswith("speed-") for record in records):
        return f"{_speed_table(records)}\n\n{_origin(records)}"
    tables: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        tables.setdefault(_table_key(record), []).append(record)
    parts = []
    for (dataset, split, student), members in sorted(tables.items()):
        parts.append(f"**{dataset}**, split `{split}`, student `{student}`")
        parts.append(_score_table(members))
    return "\n\n".join([*parts, _origin(records)])


def _metrics(record: Record) -> dict[str, str]:
    """Keys and headings of the metrics of a record: students of `boxes` give boxes, of `s4m` objects, others masks."""
    return {"boxes": BOX_METRICS, "s4m": INSTANCE_METRICS}.get(record["benchmark"], METRICS)


def _table_key(record: Record) -> tuple[str, ...]:
    return tuple(str(record.get(key, "")) for key in ("dataset", "split", "student"))


def _row_key(record: Record) -> tuple[Any, ...]:
    """Order of a row: smaller fractions first, then the order of the methods; parts taken out follow the whole."""
    method = record["method"]
    whole = "fewlabel" if method.startswith("fewlabel-minus-") else method
    place = ORDER.index(whole) if whole in ORDER else len(ORDER)
    return record.get("fraction", 1.0), place, method != whole, method, record.get("steps", 0)


def _rows(records: Sequence[Record]) -> list[list[Record]]:
    """Records of the same row together, rows in their order."""
    rows: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        rows.setdefault(_row_key(record), []).append(record)
    return [rows[key] for key in sorted(rows)]


def _score_table(records: Sequence[Record]) -> str:
    """Scores, quality of the pseudo-labels, time and memory, one row per method."""
    rows = _rows(records)
    labelled = any(record.get("pseudo_labels") for record in records)
    metrics = _metrics(records[0])
    head = ["method", "labels", "steps", "seeds", *metrics.values()]
    if labelled:
        head += ["pseudo-label IoU %", "pseudo-label Pd %", "pseudo-label Fa ppm", "coverage %"]
    head += ["minutes", "peak MiB"]
    body = []
    for row in rows:
        first = row[0]
        cells = [f"`{first['method']}`", f"{100 * first['fraction']:g} %", str(first["steps"]), str(len(row))]
        cells += [mean_sd([record["metrics"][key] for record in row]) for key in metrics]
        if labelled:
            quality = [record.get("pseudo_labels") or {} for record in row]
            cells += [mean_sd([found.get(key) for found in quality]) for key in ("IoU", "Pd", "Fa")]
            shares = [found.get("coverage") for found in quality]
            cells.append(mean_sd([None if share is None else 100 * share for share in shares]))
        cells.append(mean_sd([record["seconds"] / 60 for record in row]))
        peaks = [record["peak_rss_mb"] for record in row if record.get("peak_rss_mb") is not None]
        cells.append(f"{max(peaks):,.0f}" if len(peaks) == len(row) else "–")
        body.append(cells)
    return markdown(head, body)


def _speed_table(records: Sequence[Record]) -> str:
    """Ratios and rates of speed records, one row per method and baseline.

    Columns that only some benchmarks have (agreement of masks, share of the device's peak) appear where a record does.
    """
    further = {"mask_agreement": "mask IoU with the baseline", "share_of_peak": "share of peak"}
    shown = {key: title for key, title in further.items() if any(key in record for record in records)}
    head = ["method", "baseline", "runs", "time ratio", "memory ratio", "images/s", *shown.values()]
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        rows.setdefault((record["method"], record.get("baseline", "–")), []).append(record)
    body = []
    for (method, baseline), row in sorted(rows.items()):
        ratios = [mean_sd([record.get(key) for record in row], 2) for key in ("ratio", "memory_ratio")]
        slow = all((record.get("images_per_second") or 0) < 1 for record in row)
        rate = mean_sd([record.get("images_per_second") for record in row], 2 if slow else 1)
        more = [mean_sd([record.get(key) for record in row], 3) for key in shown]
        body.append([f"`{method}`", baseline, str(len(row)), *ratios, rate, *more])
    return markdown(head, body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is set left, all others right, and `|` in cells is escaped."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _origin(records: Sequence[Record]) -> str:
    """A line that says what the numbers are and where they come from."""

    def names(key: str) -> str:
        return ", ".join(sorted({str(record[key]) for record in records if record.get(key)}))

    days = sorted({record["date"] for record in records})
    parts = [
        f"{len(records)} records of `{names('benchmark')}`; mean ± sample standard deviation over seeds",
        f"matching `{names('matching')}`" if names("matching") else "",
        f"SAM: {names('sam')}" if names("sam") else "",
        f"on {names('machine') or names('device')}",
        f"torch {names('torch')}" if names("torch") else "",
        f"commit {names('commit')}",
        days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
    ]
    return f"*{'; '.join(part for part in parts if part)}.*"


def insert(text: str, name: str, table: str, path: Path) -> str:
    """Put a table between its markers.

    Args:
        text: The Markdown file's text.
        name: Name in the opening marker `<!-- table:name -->`.
        table: What stands between the markers afterwards.
        path: The file, named in errors.

    Returns:
        The new text; everything outside the markers is as it was.

    Raises:
        DataError: The pair of markers does not occur exactly once.
    """
    pattern = re.compile(rf"(<!-- table:{re.escape(name)} -->\n).*?(<!-- /table -->)", re.DOTALL)
    found = list(pattern.finditer(text))
    if len(found) != 1 or "<!-- table:" in found[0][0][len(found[0][1]) :]:
        raise DataError(
            f"{path} holds {len(found)} whole pairs of the markers <!-- table:{name} --> and <!-- /table --> on "
            "lines of their own, expected one; add them where the table belongs."
        )
    start, stop = found[0].end(1), found[0].start(2)
    return f"{text[:start]}\n{table}\n\n{text[stop:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, write or check a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="benchmark: a folder beside this file")
    parser.add_argument("--results", type=Path, help="folder of the records, instead of benchmarks/NAME/results")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--write", type=Path, metavar="FILE", help="Markdown file to write the table into")
    target.add_argument("--check", type=Path, metavar="FILE", help="Markdown file that must show the table already")
    options = parser.parse_args(arguments)
    try:
        table = render(load(options.results or HERE / options.name / "results"))
        path = options.write or options.check
        if path is None:
            print(table)
            return 0
        if not path.is_file():
            raise DataError(f"{path} does not exist; create it with the markers of the table.")
        old = path.read_text(encoding="utf-8")
        new = insert(old, options.name, table, path)
        if options.check and new != old:
            raise DataError(f"{path} does not show the records of {options.name}; run table.py with --write {path}.")
        if options.write and new != old:
            write_text(path, new)
    except FewlabelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
