"""Windows against whole decoding by read_image, for every layout; damaged and foreign files."""

from abc import ABC, abstractmethod

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from fewlabel.core.errors import DataError
from fewlabel.core.types import Image
from fewlabel.data.large import is_large
from fewlabel.data.pixels import FileError, read_image
from fewlabel.data.windows import ImageWindows, NpyWindows, StoredWindows, TiffWindows, open_windows

SIZE = (53, 71)


def values(dtype, *shape):
    drawn = np.random.default_rng(1).normal(100, 40, shape)
    if np.dtype(dtype).kind == "f":
        return drawn.astype(dtype)
    return np.clip(drawn, 0, 255).astype(dtype)


LAYOUTS = {
    "one piece": (values("uint16", *SIZE), {}),
    "strips": (values("uint16", *SIZE), {"rowsperstrip": 7, "compression": "zlib"}),
    "uncompressed strips": (values("float32", *SIZE), {"rowsperstrip": 7}),
    "tiles": (values("uint16", *SIZE), {"tile": (16, 32)}),
    "deflated tiles": (values("float32", *SIZE), {"tile": (32, 16), "compression": "zlib"}),
    "predictor": (values("uint16", *SIZE), {"tile": (16, 16), "compression": "zlib", "predictor": True}),
    "big endian": (values("uint16", *SIZE), {"byteorder": ">"}),
    "big endian tiles": (values("int16", *SIZE), {"byteorder": ">", "tile": (16, 16), "compression": "zlib"}),
    "bigtiff": (values("float16", *SIZE), {"bigtiff": True, "tile": (16, 16)}),
    "colour": (values("uint8", *SIZE, 3), {"photometric": "rgb"}),
    "colour strips": (values("uint8", *SIZE, 3), {"photometric": "rgb", "rowsperstrip": 5, "compression": "zlib"}),
    "colour tiles with alpha": (
        values("uint8", *SIZE, 4),
        {"photometric": "rgb", "tile": (16, 16), "extrasamples": ["unassalpha"]},
    ),
    "planes": (values("uint16", 3, *SIZE), {"photometric": "rgb", "planarconfig": "separate"}),
    "planes in tiles": (
        values("uint16", 3, *SIZE),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 32), "compression": "zlib"},
    ),
    "planes in strips": (
        values("uint8", 3, *SIZE),
        {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 10, "compression": "zlib"},
    ),
    "0 is white": (values("uint8", *SIZE), {"photometric": "miniswhite", "tile": (16, 16)}),
    "float64": (values("float64", *SIZE), {"tile": (16, 16), "compression": "zlib"}),
    "bits": (values("uint8", *SIZE) > 100, {}),
}


class ReaderContract(ABC):
    """What every window reader has to do; subclasses give a reader and the whole image's values."""

    @pytest.fixture
    @abstractmethod
    def case(self, tmp_path):
        """The reader and the whole image's values."""

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_window_is_that_of_the_whole(self, case, data):
        reader, whole = case
        assert (reader.channels, *reader.size) == whole.shape
        assert 1 <= reader.block <= whole.shape[1]
        height, width = whole.shape[1:]
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
        window = reader.read(top, left, rows, columns)
        assert window.dtype == np.float32 and window.flags.c_contiguous and window.flags.owndata
        np.testing.assert_array_equal(window, whole[:, top : top + rows, left : left + columns])
        window[:] = -1  # a copy
        assert (reader.read(top, left, rows, columns) == whole[:, top : top + rows, left : left + columns]).all()

    def test_windows_outside_are_refused(self, case):
        reader, whole = case
        height, width = whole.shape[1:]
        for window in ((-1, 0, 2, 2), (0, 0, 0, 1), (height - 1, 0, 2, 1), (0, width, 1, 1)):
            with pytest.raises(ValueError, match="no window of"):
                reader.read(*window)


class TestImage(ReaderContract):
    @pytest.fixture
    def case(self, tmp_path):
        pixels = values("float32", 2, 9, 13)
        return ImageWindows(Image("a", pixels)), pixels.copy()


@pytest.mark.parametrize("layout", LAYOUTS)
class TestTiff(ReaderContract):
    @pytest.fixture
    def case(self, tmp_path, layout):
        array, options = LAYOUTS[layout]
        tifffile.imwrite(tmp_path / "a.tif", array, metadata=None, **({"photometric": "minisblack"} | options))
        reader, image = open_windows(tmp_path / "a.tif"), read_image(tmp_path / "a.tif")
        assert isinstance(reader, TiffWindows)
        assert (reader.dtype, reader.bit_depth) == (image.dtype, image.bit_depth)
        return reader, image.pixels


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [SIZE, (3, *SIZE), (*SIZE, 3)])
@pytest.mark.parametrize("dtype", [">u2", "bool"])
class TestNpy(ReaderContract):
    @pytest.fixture
    def case(self, tmp_path, shape, order, dtype):
        np.save(
            tmp_path / "a.npy",
            np.asarray(values("uint8", *shape) > 99 if dtype == "bool" else values(dtype, *shape), order=order),
        )
        reader, image = open_windows(str(tmp_path / "a.npy")), read_image(tmp_path / "a.npy")
        assert isinstance(reader, NpyWindows)
        assert (reader.dtype, reader.bit_depth) == (image.dtype, image.bit_depth)
        return reader, image.pixels


@pytest.mark.parametrize("kind", ["png", "jpg", "lzw", "turned"])
class TestWhole(ReaderContract):
    """Formats that are decoded once."""

    @pytest.fixture
    def case(self, tmp_path, kind):
        path = tmp_path / f"a.{kind if kind in ('png', 'jpg') else 'tif'}"
        if kind == "turned":
            turn = [(274, "H", 1, 6, True)]
            tifffile.imwrite(path, values("uint16", *SIZE), tile=(16, 16), extratags=turn, metadata=None)
        else:
            options = {"compression": "tiff_lzw"} if kind == "lzw" else {}
            Picture.fromarray(values("uint8", *SIZE)).save(path, **options)
        reader = open_windows(path)
        assert isinstance(reader, StoredWindows) and reader.nbytes == SIZE[0] * SIZE[1] * (2 if kind == "turned" else 1)
        assert reader.size == (SIZE[::-1] if kind == "turned" else SIZE)
        return reader, read_image(path).pixels


def test_only_what_touches_the_window_is_decoded(tmp_path):
    """Damage elsewhere in the file does not matter, damage inside is named."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values("uint16", 64, 64), tile=(16, 16), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]  # row 1, column 1 of the tiles
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    reader = open_windows(path)
    assert reader.block == 16
    assert reader.read(0, 0, 16, 64).shape == (1, 16, 64)
    assert reader.read(16, 32, 48, 32).shape == (1, 48, 32)
    with pytest.raises(FileError, match=r"a.tif is truncated or damaged .*: copy the file again"):
        reader.read(15, 15, 2, 2)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 8, "compression": "zlib"}])
def test_a_truncated_tiff_is_named(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values("uint16", 64, 64), metadata=None, **options)
    data = path.read_bytes()
    reader = open_windows(path)
    for length in (len(data) - 400, 200, 7, 0):
        path.write_bytes(data[:length])
        with pytest.raises(FileError, match="a.tif"):
            reader.read(0, 0, 64, 64)
        with pytest.raises(FileError, match="a.tif"):
            open_windows(path).read(0, 0, 64, 64)
    path.unlink()
    with pytest.raises(FileError, match="a.tif"):
        reader.read(0, 0, 4, 4)
    with pytest.raises(FileError, match="does not exist"):
        open_windows(path)


def test_tiles_left_out_of_the_file_are_zeros(tmp_path):
    path = tmp_path / "a.tif"

    def only_one():
        yield np.full((16, 16), 7, np.uint16)
        yield None
        yield None
        yield np.full((16, 16), 9, np.uint16)

    tifffile.imwrite(path, only_one(), shape=(32, 32), dtype=np.uint16, tile=(16, 16), metadata=None)
    whole = read_image(path).pixels
    np.testing.assert_array_equal(open_windows(path).read(0, 0, 32, 32), whole)
    assert set(np.unique(whole)) == {0, 7, 9}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused_where_they_are(tmp_path, bad):
    array = np.ones((40, 40), np.float32)
    array[30, 35] = bad
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(16, 16))
    np.save(tmp_path / "a.npy", array)
    for reader in (open_windows(tmp_path / "a.tif"), open_windows(tmp_path / "a.npy")):
        assert reader.read(0, 0, 30, 40).sum() == 1200
        with pytest.raises(FileError, match="1 NaN or infinite values in rows 24 to 39, columns 32 to 39") as caught:
            reader.read(24, 32, 16, 8)
        assert caught.value.file == reader.path
    with pytest.raises(DataError, match="1 NaN or infinite"):
        ImageWindows(Image("a", array[None])).read(0, 0, 40, 40)


def test_large_strips_are_decoded_once(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values("uint16", 64, 64), rowsperstrip=64, compression="zlib", metadata=None)
    assert isinstance(open_windows(path), TiffWindows)
    monkeypatch.setattr("fewlabel.data.windows.LARGE_SEGMENT", 64 * 64 - 1)
    assert isinstance(open_windows(path), StoredWindows)


def test_npy_files_that_are_no_images(tmp_path):
    for name, array in {
        "pickle": np.array([{}, None]),
        "flat": np.ones(9, np.float32),
        "channels": np.ones((5, 6, 7), np.float32),
        "complex": np.ones((4, 4), np.complex64),
        "none": np.ones((0, 4), np.float32),
    }.items():
        path = tmp_path / f"{name}.npy"
        np.save(path, array, allow_pickle=True)
        with pytest.raises(FileError, match=name):
            open_windows(path)
    path = tmp_path / "cut.npy"
    np.save(path, np.ones((40, 40), np.float32))
    reader = open_windows(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileError, match="cut.npy is truncated or damaged"):
        reader.read(0, 0, 2, 2)
    with pytest.raises(FileError, match="cut.npy is truncated or damaged"):
        open_windows(path)


def test_types_that_windows_leave_to_read_image(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 5), 70_000, np.int32))
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 5), 70_000, np.uint32))
    for name in ("a.npy", "a.tif"):
        reader = open_windows(tmp_path / name)
        assert isinstance(reader, StoredWindows) and reader.read(1, 1, 1, 1) == 70_000
    np.save(tmp_path / "a.npy", np.full((4, 5), 1e300))
    with pytest.raises(FileError, match="infinite"):
        open_windows(tmp_path / "a.npy").read(0, 0, 2, 2)


def test_foreign_files_are_refused_as_read_image_refuses_them(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty.tif").write_bytes(b"")
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((2, 9, 9), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((9, 9), np.complex64))
    for name in ("a.txt", "empty.tif", "pages.tif", "complex.tif", "missing.tif", "."):
        with pytest.raises(FileError) as theirs:
            read_image(tmp_path / name)
        with pytest.raises(FileError) as ours:
            open_windows(tmp_path / name)
        assert str(ours.value) == str(theirs.value)


def test_more_pixels_than_codes_count_are_refused(tmp_path):
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (65_536, 65_536)).flush()  # a sparse file
    with pytest.raises(FileError, match="more than the limit of 4294967295"):
        open_windows(tmp_path / "a.npy")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2**16), value=st.integers(0, 255))
def test_any_damaged_byte_gives_values_or_a_sentence(tmp_path, position, value):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values("uint8", 20, 20), tile=(16, 16), compression="zlib", metadata=None)
    data = bytearray(path.read_bytes())
    data[position % min(len(data), 400)] = value
    path.write_bytes(data)
    try:
        reader = open_windows(path)
        height, width = reader.size
        assert reader.read(0, 0, min(height, 64), min(width, 64)).dtype == np.float32
    except FileError:
        pass


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif", ".npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_is_told_by_the_header(tmp_path, monkeypatch, ending, channels):
    path = tmp_path / f"a{ending}"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 41, channels), np.uint8).squeeze()
    if ending == ".npy":
        np.save(path, pixels)
    elif ending == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Picture.fromarray(pixels).save(path)
    for held, large in ((60 * 41, False), (60 * 41 - 1, True)):
        monkeypatch.setattr("fewlabel.data.large.HELD", held)
        assert is_large(path) is large
    path.write_bytes(path.read_bytes()[:20])
    assert not is_large(path), "what is wrong with it is told by reading it"
    assert not is_large(tmp_path / "missing.png")


def test_a_whole_decode_keeps_to_the_limit(tmp_path):
    Picture.fromarray(values("uint8", 40, 40)).save(tmp_path / "a.png")
    assert open_windows(tmp_path / "a.png", max_pixels=1600).size == (40, 40)
    with pytest.raises(FileError, match="more than the limit of 1599"):
        open_windows(tmp_path / "a.png", max_pixels=1599)
