"""Opening .npy files: NumPy's own arrays come through, and a hostile header does nothing."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.data.npy import MAGIC, open_array


def write(path: Path, header: str, data: bytes = b"", version: int = 1) -> Path:
    """A .npy file with a header of our own choice."""
    text = header.encode("latin-1")
    path.write_bytes(MAGIC + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data)
    return path


@pytest.mark.parametrize("kind", ["?", "u1", "<i2", ">u4", "<i8", "<f2", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_of_numpy_come_through(tmp_path, kind, order, version):
    values = np.array(np.random.default_rng(0).integers(0, 2, (3, 4, 5)), kind, order=order)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, values, version)
    array = open_array(tmp_path / "a.npy")
    assert isinstance(array, np.memmap) and array.dtype == values.dtype and not array.flags.writeable
    np.testing.assert_array_equal(array, values)


def test_keys_in_another_order(tmp_path):
    path = write(tmp_path / "a.npy", "{'shape': (2,), 'fortran_order': False, 'descr': '|u1'}", b"\x05\x06", version=2)
    assert open_array(path).tolist() == [5, 6]


@pytest.mark.parametrize(
    "header",
    [
        "__import__('pathlib').Path('HERE').touch()",
        "{'descr': __import__('pathlib').Path('HERE').touch(), 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000, 2000000000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': [1]}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1, " * 33 + ")}",
        "(" * 4000,
        "-" * 4000 + "1",
        "[" * 90 + "]" * 90,
        "{[]: 1}",
        "",
        "\0",
    ],
)
def test_hostile_headers_are_refused(tmp_path, header):
    seen = tmp_path / "executed"
    path = write(tmp_path / "a.npy", header.replace("HERE", str(seen)), pickle.dumps(1))
    with pytest.raises(ValueError):
        open_array(path)
    assert not seen.exists()


def test_header_that_announces_more_than_numpy_writes(tmp_path):
    path = write(tmp_path / "a.npy", "{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}" + " " * 5000, b"1")
    with pytest.raises(ValueError, match="5055 bytes of itself"):
        open_array(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_of_value_or_an_array_of_the_file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "a.npy"
    np.save(path, np.arange(12, dtype=np.uint16).reshape(3, 4))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        array = open_array(path)
    except ValueError:
        return
    assert array.nbytes <= len(content)
