import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fewlabel.core.errors import DataError

SOURCE = Path(__file__).parents[1] / "benchmarks" / "table.py"


def load_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_table", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = load_module()


def record(method: str = "fewlabel", seed: int = 0, iou: float = 60.0, **changes: Any) -> dict[str, Any]:
    base = {
        "benchmark": "main-job",
        "dataset": "NUAA-SIRST",
        "split": "dnanet-50-50",
        "fraction": 0.1,
        "seed": seed,
        "method": method,
        "student": "acm",
        "steps": 4000,
        "metrics": {"IoU": iou, "nIoU": iou - 1, "Pd": 94.0, "Fa": 31.0},
        "seconds": 600.0 + 60 * seed,
        "peak_rss_mb": 1400 + seed,
        "device": "cpu-2",
        "torch": "2.13.0",
        "commit": "abc1234",
        "date": "2026-11-20",
        "recipe": {},
    }
    return base | changes


def save(folder: Path, *records: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, item in enumerate(records):
        (folder / f"{index}.json").write_text(json.dumps(item))
    return folder


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_row_is_the_mean_and_deviation_over_its_seeds(tmp_path: Path) -> None:
    values = [58.0, 61.5, 60.1]
    folder = save(tmp_path, *(record(seed=seed, iou=value) for seed, value in enumerate(values)))
    head, _, row = cells(table.render(table.load(folder)))
    found = dict(zip(head, row, strict=True))
    assert found["IoU %"] == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    assert (found["method"], found["labels"], found["seeds"]) == ("`fewlabel`", "10 %", "3")
    assert (found["minutes"], found["peak MiB"]) == ("11.0 ± 1.0", "1,402")
    assert "coverage %" not in head


def test_pseudo_label_columns_appear_when_somebody_has_them(tmp_path: Path) -> None:
    quality = {"IoU": 58.3, "Pd": 90.2, "Fa": 12.5, "coverage": 0.91}
    folder = save(tmp_path, record(pseudo_labels=quality), record("labels-only", pseudo_labels=None))
    head, _, first, second = cells(table.render(table.load(folder)))
    assert first[0] == "`labels-only`"
    assert dict(zip(head, first, strict=True))["pseudo-label IoU %"] == "–"
    assert dict(zip(head, second, strict=True))["coverage %"] == "91.0"


def test_rows_follow_the_order_of_the_methods(tmp_path: Path) -> None:
    methods = ["zeta", "all-labels", "fewlabel-minus-gate", "fewlabel", "adapter-lora", "labels-only"]
    items = [record(m, fraction=1.0 if m == "all-labels" else 0.1) for m in methods]
    _, _, *rows = cells(table.render(table.load(save(tmp_path, *items))))
    expected = ["labels-only", "adapter-lora", "fewlabel", "fewlabel-minus-gate", "zeta", "all-labels"]
    assert [row[0].strip("`") for row in rows] == expected


def test_each_data_set_split_and_student_has_its_own_table(tmp_path: Path) -> None:
    folder = save(tmp_path, record(), record(student="unet"), record(dataset="NUDT-SIRST"), record(split="own"))
    text = table.render(table.load(folder))
    assert text.count("| method |") == 4
    assert "**NUDT-SIRST**, split `dnanet-50-50`, student `acm`" in text
    assert "4 records of `main-job`" in text


def test_a_value_that_one_seed_lacks_is_a_dash() -> None:
    assert table.mean_sd([1.0, None]) == "–"
    assert table.mean_sd([]) == "–"
    assert table.mean_sd([2.0]) == "2.0"


def test_speed_columns_that_only_some_have_appear_where_a_record_does(tmp_path: Path) -> None:
    keys = ("method", "device", "commit", "date")
    base = {key: record()[key] for key in keys} | {"benchmark": "speed-codec", "baseline": "loop", "ratio": 2.0}
    assert "mask IoU" not in table.render([base])
    text = table.render([base | {"mask_agreement": 0.99401}, base | {"method": "other", "images_per_second": 0.083}])
    assert "| mask IoU with the baseline |" in text
    assert "| 0.994 |" in text
    assert "| 0.08 | – |" in text


def test_speed_records_show_ratios(tmp_path: Path) -> None:
    keys = ("benchmark", "method", "device", "torch", "commit", "date", "recipe")
    base = {key: record()[key] for key in keys} | {"benchmark": "speed-codec", "baseline": "loop | numpy"}
    folder = save(tmp_path, base | {"ratio": 3.0, "seed": 0}, base | {"ratio": 4.0, "seed": 1, "memory_ratio": 2.0})
    text = table.render(table.load(folder))
    assert "| `fewlabel` | loop \\| numpy | 2 | 3.50 ± 0.71 | – | – |" in text
    alone = {key: base[key] for key in ("benchmark", "method", "device", "commit", "date")}
    text = table.render(table.load(save(tmp_path / "alone", alone | {"images_per_second": 123.0, "threads": 1})))
    assert "| `fewlabel` | – | 1 | – | – | 123.0 |" in text
    with pytest.raises(DataError, match="lacks ratio and baseline, or images_per_second"):
        table.load(save(tmp_path / "neither", alone))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fraction": 10}, "fraction is 10, expected a share"),
        ({"metrics": {"IoU": 0.6, "nIoU": 0.5, "Pd": 0.9}}, "metrics lacks Fa"),
        (
            {"metrics": {"IoU": 160.0, "nIoU": 0.5, "Pd": 0.9, "Fa": 1}},
            r"metrics.IoU is 160.0, expected null or a number",
        ),
        ({"metrics": {"IoU": True, "nIoU": 0.5, "Pd": 0.9, "Fa": 1}}, "metrics.IoU is True"),
        ({"pseudo_labels": {"coverage": 91.0}}, "pseudo_labels.coverage is 91.0"),
        ({"seed": 1.5}, "seed is 1.5, expected a whole number"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"method": ""}, "method is '', expected a text"),
        ({"recipe": "x"}, "recipe is a str"),
        ({"colour": 1}, "unknown key colour"),
    ],
)
def test_a_wrong_record_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = save(tmp_path, record() | change)
    with pytest.raises(DataError, match=rf"0\.json: .*{words}"):
        table.load(folder)


def test_missing_keys_and_broken_files_are_refused(tmp_path: Path) -> None:
    short = record()
    del short["commit"], short["steps"]
    with pytest.raises(DataError, match="lacks commit, steps"):
        table.load(save(tmp_path / "a", short))
    with pytest.raises(DataError, match="expected an object"):
        table.check_record([], Path("x.json"))
    with pytest.raises(DataError, match="holds no records"):
        table.load(tmp_path / "none")
    broken = save(tmp_path / "b", record())
    (broken / "0.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        table.load(broken)


def test_a_cell_counts_once_and_matching_rules_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.json and .*0\.json record the same cell"):
        table.load(save(tmp_path / "a", record(), record(iou=1.0)))
    with pytest.raises(DataError, match="legacy, nearest"):
        table.load(save(tmp_path / "b", record(matching="nearest"), record(seed=1, matching="legacy")))


def test_only_the_part_between_the_markers_changes(tmp_path: Path) -> None:
    folder = save(tmp_path / "r", record())
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n<!-- table:main-job -->\nold\n<!-- /table -->\nmid\n<!-- table:b -->\nkept\n<!-- /table -->\nend"
    )
    arguments = ["main-job", "--results", str(folder)]
    assert table.main([*arguments, "--check", str(page)]) == 2
    assert table.main([*arguments, "--write", str(page)]) == 0
    first = page.read_text()
    assert first.startswith("# A\n<!-- table:main-job -->\n") and "old" not in first and "| `fewlabel` |" in first
    assert first.endswith("<!-- /table -->\nmid\n<!-- table:b -->\nkept\n<!-- /table -->\nend")
    assert table.main([*arguments, "--write", str(page)]) == 0
    assert page.read_text() == first
    assert table.main([*arguments, "--check", str(page)]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- table:main-job -->\nno end",
        "<!-- table:main-job -->\n<!-- /table -->\n<!-- table:main-job -->\n<!-- /table -->\n",
        "<!-- table:main-job -->\n<!-- table:b -->\n<!-- /table -->\n",
    ],
)
def test_unclear_markers_leave_the_file_alone(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, page = save(tmp_path / "r", record()), tmp_path / "page.md"
    page.write_text(text)
    assert table.main(["main-job", "--results", str(folder), "--write", str(page)]) == 2
    assert page.read_text() == text
    assert "expected one" in capsys.readouterr().err


def test_the_example_of_the_readme_keeps_to_the_schema() -> None:
    text = (SOURCE.parent / "README.md").read_text(encoding="utf-8")
    example = json.loads(text.split("```json\n")[1].split("```")[0])
    assert table.check_record(example, Path("README.md")) == example


def test_committed_records_keep_to_the_schema() -> None:
    for path in sorted(SOURCE.parent.glob("*/results/*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["benchmark"] == "main-job" or found["benchmark"].startswith("speed-"):
            table.check_record(found, path)


def test_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["main-job", "--results", str(save(tmp_path, record(sam="nano-SAM")))]) == 0
    out = capsys.readouterr().out
    assert "| `fewlabel` |" in out and "SAM: nano-SAM" in out
