"""A teacher's beliefs: what survives the file, and what the gate leaves of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.core.masks import encode
from fewlabel.core.types import Instances
from fewlabel.labels.soft import read_soft, soft_target, write_soft
from fewlabel.labels.store import PseudoLabel


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_map_survives_the_file_to_half_a_level(tmp_path_factory, seed, size):
    probability = np.random.default_rng(seed).random(size).astype(np.float32)
    path = tmp_path_factory.mktemp("soft") / "folder" / "a.b é.png"
    write_soft(path, probability)
    found = read_soft(path)
    assert found.dtype == np.float32
    assert np.abs(found - probability).max() <= 0.5 / 255 + 1e-6
    first = path.read_bytes()
    write_soft(path, found)
    assert path.read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_the_ends_are_exact(tmp_path):
    write_soft(tmp_path / "a.png", np.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(read_soft(tmp_path / "a.png"), [[0, 1]])


def test_a_missing_or_broken_map_is_named(tmp_path):
    with pytest.raises(DataError, match="a.png is no readable map"):
        read_soft(tmp_path / "a.png")
    write_soft(tmp_path / "a.png", np.random.default_rng(0).random((40, 40)))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(DataError, match="a.png is no readable map"):
        read_soft(tmp_path / "a.png")


def masks(*places):
    found = np.zeros((len(places), 12, 15), bool)
    for mask, (row, column) in zip(found, places, strict=True):
        mask[row : row + 2, column : column + 3] = True
    return found


def test_the_gate_has_the_last_word_and_the_band_is_kept():
    accepted, ignored, rejected, band = masks((1, 1), (1, 8), (7, 1), (7, 8))
    label = PseudoLabel(
        id="a",
        size=(12, 15),
        accepted=Instances.from_masks(accepted[None], source="teacher", round=1),
        ignored=(encode(ignored), encode(band)),
        rejected=Instances.from_masks(rejected[None], source="teacher", round=1),
        reasons=("confident", "unsupported", "large"),
    )
    probability = np.random.default_rng(0).uniform(0.2, 0.9, (12, 15)).astype(np.float32)
    target = soft_target(label, probability)
    assert target.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(target), ignored)
    assert (target[rejected] == 0).all()
    kept = ~ignored & ~rejected
    np.testing.assert_array_equal(target[kept], probability[kept])
    with pytest.raises(DataError, match="is 5 × 5 pixels, its pseudo-label 12 × 15"):
        soft_target(label, probability[:5, :5])
