"""Large images from file to instances: the three ways of benchmarks/tiles agree, and memory is bounded."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tifffile

from fewlabel.core.types import Instances
from fewlabel.data.moments import grey_moments, standardised_rows
from fewlabel.data.pixels import read_image
from fewlabel.data.windows import TiffWindows, open_windows

SOURCE = Path(__file__).parents[2] / "benchmarks" / "tiles" / "run.py"
SPEC = importlib.util.spec_from_file_location("benchmarks_tiles", SOURCE)
assert SPEC and SPEC.loader
run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run)


def same(first: Instances, second: Instances) -> bool:
    return first.rles == second.rles and np.array_equal(first.boxes, second.boxes)


def test_three_ways_find_the_same_instances(tmp_path, monkeypatch):
    """Discs in small tiles: whole image, blended bands, stitched instances."""
    monkeypatch.setattr(run, "TILE", 128)
    monkeypatch.setattr(run, "CUT", 2.0)  # so many discs spread the values
    path = tmp_path / "a.tif"
    run.write_scene(path, 512, 40)
    whole = run.whole(path)
    assert len(whole) > 20
    assert same(run.by_bands(path), whole)
    assert same(run.by_stitching(path), whole)


@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 11, "compression": "zlib"}, {"tile": (64, 32)}])
def test_odd_sizes_and_layouts(tmp_path, monkeypatch, options):
    monkeypatch.setattr(run, "TILE", 96)
    rng = np.random.default_rng(0)
    pixels = rng.integers(900, 1100, (301, 215)).astype(np.uint16)
    for y, x in rng.integers(0, 200, (30, 2)):
        pixels[y : y + 17, x : x + 3] = pixels[y : y + 3, x : x + 15] = 20_000
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, metadata=None, **options)
    monkeypatch.setattr(run, "CUT", 2.0)
    whole = run.whole(path)
    assert len(whole) > 8
    assert same(run.by_bands(path), whole)
    # Crossed bars make components larger than the overlap; those are the bands' business.
    small = (whole.boxes[:, 2:] - whole.boxes[:, :2]).max(axis=1) < run.OVERLAP
    assert small.sum() > 5
    stitched = run.by_stitching(path)
    assert {code["counts"] for code in whole.select(small).rles} <= {code["counts"] for code in stitched.rles}


@pytest.mark.slow  # a minute: writes and segments 10,240 x 10,240 pixels
def test_memory_of_a_large_image(tmp_path):
    """Growth of resident memory, in a process of its own, is a few rows of tiles: the image alone has 400 MiB."""
    path = tmp_path / "a.tif"
    run.write_scene(path, 10_240, 2000)
    results = {way: run.measure(way, path) for way in ("bands", "stitch")}
    assert results["bands"]["digest"] == results["stitch"]["digest"]
    assert results["bands"]["instances"] > 1500
    for result in results.values():
        assert result["growth_mb"] < 300


def test_a_reader_of_a_real_image_gives_its_windows(real_data, tmp_path):
    """A real infrared frame, written again in tiles."""
    files = sorted((real_data / "NUAA-SIRST").rglob("*.png"))
    image = read_image(files[0])
    tifffile.imwrite(tmp_path / "a.tif", image.grey(), tile=(32, 32), compression="zlib", metadata=None)
    reader = open_windows(tmp_path / "a.tif")
    assert isinstance(reader, TiffWindows)
    np.testing.assert_array_equal(reader.read(0, 0, *image.size)[0], image.grey())
    rows = standardised_rows(reader, grey_moments(reader))(0, image.height)
    assert abs(rows.mean()) < 1e-5 and abs(rows.std() - 1) < 1e-5
