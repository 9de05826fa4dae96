"""Objects out of maps of numbers, against loops over pixels; lists of names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from fewlabel.core.errors import DataError
from fewlabel.core.types import Instances
from fewlabel.data.readers import maps as module
from fewlabel.data.readers.maps import class_of, from_indexes, from_numbers, read_names


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("classes.txt", "\ufeffcat\r\n dog \r\n\r\n", ("cat", "dog")),
        ("classes.txt", "__ignore__\n_background_\ncat\n", ("cat",)),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n", ("cat",)),
        ("classes.txt", "cat: wild\n#1\n", ("cat: wild", "#1")),
        ("classes.json", '["cat", "dog"]', ("cat", "dog")),
        ("classes.json", '{"2": "dog", "1": "cat"}', ("cat", "dog")),
        ("classes.json", '{"Background": 0, "cat": 1}', ("cat",)),
    ],
)
def test_names(tmp_path, file, text, names):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / file) == names


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("classes.txt", "background\n", "names 0 classes"),
        ("classes.txt", "cat\ncat\n", "'cat' more than once"),
        ("classes.txt", "\n".join(f"c{number}" for number in range(255)), "names 255 classes"),
        ("classes.txt", "c" * 999, "a name of 999 characters"),
        ("classes.json", "{", "not valid JSON"),
        ("classes.json", "[" * 100_000, "not valid JSON"),
        ("classes.json", '{"1": "cat", "3": "dog"}', "1, 2, ..."),
        ("classes.json", '{"0": "cat", "1": "dog"}', "calls the index 0 'cat'"),
        ("classes.json", '{"1": 2, "x": "y"}', "1, 2, ..."),
        ("classes.json", '{"cat": 1e999}', "1, 2, ..."),
        ("classes.json", '{"cat": 1.5}', "1, 2, ..."),
        ("classes.json", "[1, 2]", "no list of names"),
        ("classes.json", '"cat"', "no list of names"),
    ],
)
def test_names_that_cannot_be_used(tmp_path, file, text, word):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=word.replace(".", r"\.")) as caught:
        read_names(tmp_path / file)
    assert str(tmp_path / file) in str(caught.value)


maps = arrays.arrays(
    np.int32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0, 1, 2, 255, 9000])
)


@settings(deadline=None)
@given(maps)
def test_numbers_are_objects(numbers):
    instances, wanted = from_numbers(numbers)
    assert wanted.tolist() == sorted({*numbers.ravel().tolist()} - {0})
    for mask, box, number in zip(instances.masks(), instances.boxes, wanted, strict=True):
        np.testing.assert_array_equal(mask, numbers == number)
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@settings(deadline=None)
@given(maps)
def test_components_of_classes(indexes):
    indexes = indexes % 256  # 9000 becomes 40
    instances = from_indexes(indexes)
    wanted = [
        (kind - 1, (labels == number).tobytes())
        for kind in (1, 2, 40)
        for labels, count in [ndimage.label(indexes == kind, np.ones((3, 3)))]
        for number in range(1, count + 1)
    ]
    got = [(int(kind), mask.tobytes()) for kind, mask in zip(instances.classes, instances.masks(), strict=True)]
    assert got == wanted


@settings(deadline=None)
@given(maps, st.randoms(use_true_random=False))
def test_the_class_of_most_pixels(numbers, random):
    indexes = np.array([random.choice([0, 1, 2, 255]) for _ in range(numbers.size)]).reshape(numbers.shape)
    wanted = from_numbers(numbers)[1]
    for number, index in zip(wanted, class_of(numbers, wanted, indexes), strict=True):
        votes = [int((indexes[numbers == number] == kind).sum()) for kind in range(256)]
        assert index == (max(range(1, 256), key=lambda kind: (votes[kind], -kind)) if sum(votes[1:]) else 0)


@pytest.mark.parametrize("seed", range(4))
def test_large_maps_are_read_by_bands(monkeypatch, seed):
    """Byte for byte what small ones give, with gaps in the numbers and objects across the bands."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(rng.integers(0, 40, (30, 23)) * (rng.random((30, 23)) < 0.4), 3, axis=0).astype(np.int32) * 7
    whole, names = module.from_numbers(numbers)
    mask = module.from_mask(numbers > 0)
    monkeypatch.setattr(module, "HELD", 100)
    monkeypatch.setattr(module, "BAND", 13)
    found, same = module.from_numbers(numbers)
    assert found.to_json() == whole.to_json() and np.array_equal(same, names) and same.dtype == names.dtype
    assert module.from_mask(numbers > 0).to_json() == mask.to_json() == Instances.from_semantic(numbers > 0).to_json()
    empty = np.zeros((20, 20), np.int32)
    assert len(module.from_numbers(empty)[0]) == len(module.from_mask(empty > 0)) == 0
