"""Hold the scalpel benchmark's records against its targets, and list what was not run.

    python benchmarks/scalpel/verdict.py [--write docs/methods/scalpel.md]     # between <!-- verdict --> markers

The targets, at 10 % of the labels, means over seeds: fewlabel reaches all labels for one student of each data set and
97 % of it for all; it is 2 IoU points above the best control; it has no more false alarms than all labels.
"""

import argparse
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from grid import METHODS, PUBLISHED, STUDENT_METHODS, TRAINED_OUT, cells

from fewlabel.core.files import read_json, write_text

RESULTS = Path(__file__).parent / "results"
FRACTION, CLOSE, LEAD = 0.1, 0.97, 2.0
CONTROLS = tuple(m for m in METHODS if m in STUDENT_METHODS[:-1] or m.startswith("adapter-"))

Means = dict[str, dict[str, float]]


def means(records: list[dict[str, Any]], dataset: str, student: str) -> Means:
    """IoU and Fa of each method, means over the seeds at FRACTION (`all-labels` at its own), with the seeds' number."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        of_ours = record["fraction"] == FRACTION or record["method"] == "all-labels"
        if (record["dataset"], record["student"]) == (dataset, student) and of_ours:
            found.setdefault(record["method"], []).append(record["metrics"])
    return {
        method: {"IoU": fmean(m["IoU"] for m in row), "Fa": fmean(m["Fa"] for m in row), "seeds": len(row)}
        | ({"sd": stdev(m["IoU"] for m in row)} if len(row) > 1 else {})
        for method, row in found.items()
    }


def judge(dataset: str, student: str, scores: Means) -> list[str]:
    """One line of the verdict's table: what fewlabel reaches, what it was to reach, and by how much it misses."""

    def told(good: bool, text: str) -> str:
        return f"{text} {'met' if good else '**missed**'}"

    ours, whole = scores["fewlabel"], scores.get("all-labels")
    controls = {method: scores[method]["IoU"] for method in CONTROLS if method in scores}
    row = [dataset, f"`{student}`", f"{ours['IoU']:.1f}"]
    if whole is None:
        row += ["not run", "not run"]
    else:
        ratio = ours["IoU"] / whole["IoU"]
        published = PUBLISHED.get((dataset, student))
        mark = ", under-trained" if published is not None and whole["IoU"] < published - TRAINED_OUT else ""
        row += [
            told(ratio >= CLOSE, f"{ratio:.3f} of {whole['IoU']:.1f}{mark}:"),
            told(ours["Fa"] <= whole["Fa"], f"{ours['Fa']:.0f} against {whole['Fa']:.0f}:"),
        ]
    if controls:
        best = max(controls, key=lambda method: controls[method])
        lead = ours["IoU"] - controls[best]
        row.append(told(lead >= LEAD, f"{lead:+.1f} on `{best}`:"))
    else:
        row.append("not run")
    return row


def parts(scores: Means) -> list[str]:
    """What fewlabel loses without each part, or with a further one, in IoU points, largest loss first."""
    changed = {name: value for name, value in scores.items() if name.startswith("fewlabel-")}
    losses = sorted((scores["fewlabel"]["IoU"] - value["IoU"], name) for name, value in changed.items())
    return [f"{name.removeprefix('fewlabel-')} {loss:+.1f}" for loss, name in reversed(losses)]


def render(records: list[dict[str, Any]]) -> str:
    """The verdict as Markdown."""
    pairs = sorted({(record["dataset"], record["student"]) for record in records})
    head = ["data", "student", "fewlabel IoU", "of all labels, at least 0.970", "Fa, at most all labels'"]
    head += ["lead on the best control, at least 2.0"]
    lines = ["| " + " | ".join(head) + " |", "|:--|:--|--:|--:|--:|--:|"]
    ablations = []
    for dataset, student in pairs:
        scores = means(records, dataset, student)
        if "fewlabel" not in scores:
            continue
        lines.append("| " + " | ".join(judge(dataset, student, scores)) + " |")
        if losses := parts(scores):
            ablations.append(f"* {dataset}, `{student}`: " + ", ".join(losses))
    text = ["\n".join(lines) if len(lines) > 2 else "No row of fewlabel was measured yet."]
    if ablations:
        text.append(
            "IoU points that fewlabel is better than itself without a part (minus) or with a further one (plus):\n\n"
            + "\n".join(ablations)
        )
    recorded = {path.stem for path in RESULTS.glob("*.json")}
    for grid in ("cpu", "full"):
        plan = cells(grid)  # type: ignore[arg-type]
        done = sum(cell.name in recorded for cell in plan)
        text.append(f"Grid `{grid}`: {done} of {len(plan)} cells measured, the others not run.")
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with <!-- verdict --> markers")
    options = parser.parse_args()
    text = render([read_json(path) for path in sorted(RESULTS.glob("*.json"))])
    if options.write is None:
        print(text)
        return
    old = options.write.read_text(encoding="utf-8")
    new, count = re.subn(
        r"(<!-- verdict -->\n).*?(<!-- /verdict -->)", lambda m: f"{m[1]}\n{text}\n\n{m[2]}", old, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{options.write} holds {count} pairs of <!-- verdict --> markers, expected one")
    write_text(options.write, new)


if __name__ == "__main__":
    main()
