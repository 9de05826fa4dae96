"""Reading pixels: every kind of file keeps its values, every broken one is refused with a sentence."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageFile

from fewlabel.core.errors import DataError
from fewlabel.data.pixels import read_image, read_mask

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 13), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)


def refuses(path: Path, *words: str, read=read_image, **options) -> None:
    """The file is refused with one sentence that names it and every one of ``words``."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and sentence.endswith(".")
    for word in words:
        assert word in sentence


def test_grey_png_keeps_values_type_and_place(tmp_path):
    path = tmp_path / "scene.png"
    Pillow.fromarray(GREY).save(path)
    image = read_image(path)
    assert (image.id, image.dtype, image.bit_depth, image.path) == ("scene", "uint8", 8, path)
    assert image.pixels.dtype == np.float32 and image.pixels.flags.c_contiguous
    np.testing.assert_array_equal(image.pixels, GREY[None])
    assert read_image(path, "other").id == "other"


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGB", 3), ("RGBA", 3)])
def test_alpha_is_dropped(tmp_path, mode, channels):
    values = RNG.integers(0, 256, (9, 13, len(mode)), dtype=np.uint8)
    Pillow.fromarray(values, mode).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png").pixels
    np.testing.assert_array_equal(pixels, values[..., :channels].transpose(2, 0, 1))


def test_palette_png_becomes_its_colours(tmp_path):
    index = RNG.integers(0, 3, (9, 13), dtype=np.uint8)
    colours = np.array([[10, 20, 30], [200, 0, 7], [0, 255, 1]], np.uint8)
    picture = Pillow.fromarray(index, "P")
    picture.putpalette(colours.ravel().tolist())
    picture.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").pixels, colours[index].transpose(2, 0, 1))


def test_one_bit_png(tmp_path):
    Pillow.fromarray(GREY > 100).save(tmp_path / "one.png")
    image = read_image(tmp_path / "one.png")
    assert (image.dtype, image.bit_depth) == ("uint8", 1)
    np.testing.assert_array_equal(image.pixels[0], GREY > 100)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_png_below_eight_bits_gives_stored_values(tmp_path, bits):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    per_byte = 8 // bits
    values = np.arange(8 * per_byte * 2).reshape(2, -1) % 2**bits
    shifts = np.arange(per_byte)[::-1] * bits
    rows = (values.reshape(2, -1, per_byte) << shifts).sum(2).astype(np.uint8)
    header = struct.pack(">IIBBBBB", values.shape[1], 2, bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path = tmp_path / "low.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    image = read_image(path)
    assert image.bit_depth == bits
    np.testing.assert_array_equal(image.pixels[0], values)


def test_sixteen_bit_png_is_kept_at_depth(tmp_path):
    values = RNG.integers(0, 2**14, (9, 13), dtype=np.uint16)  # a 14-bit sensor in a 16-bit file
    Pillow.fromarray(values).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert (image.dtype, image.bit_depth) == ("uint16", 16)
    np.testing.assert_array_equal(image.pixels[0], values)


def test_sixteen_bit_colour_png_is_refused_rather_than_squeezed(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(b"\0" + bytes(6 * 3))
    path = tmp_path / "deep.png"
    header = struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    refuses(path, "16-bit", "TIFF")


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "float16", "float32", ">u2"], ids=lambda dtype: dtype.replace(">", "big-")
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_keeps_depth(tmp_path, dtype, compression):
    values = (RNG.random((9, 13)) * 200).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, compression=compression, byteorder=">" if dtype[0] == ">" else "<")
    image = read_image(path)
    assert image.dtype == np.dtype(dtype).newbyteorder("=").name
    assert image.bit_depth == 8 * np.dtype(dtype).itemsize
    np.testing.assert_array_equal(image.pixels[0], values.astype(np.float32))


def test_lzw_tiff_is_read(tmp_path):
    values = RNG.integers(0, 2**16, (9, 13), dtype=np.uint16)
    Pillow.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw")
    image = read_image(tmp_path / "a.tif")
    assert (image.dtype, image.bit_depth) == ("uint16", 16)
    np.testing.assert_array_equal(image.pixels[0], values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_tiff_and_its_alpha(tmp_path, planar):
    values = RNG.integers(0, 2**16, (9, 13, 4), dtype=np.uint16)
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, values[..., :3].transpose(2, 0, 1))


def test_white_is_zero_tiff_is_turned_round(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels[0], 255 - GREY)


def test_jpeg_and_bmp(tmp_path):
    smooth = np.repeat(np.linspace(0, 255, 32, dtype=np.uint8)[None], 24, axis=0)
    Pillow.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    Pillow.fromarray(COLOUR).save(tmp_path / "a.bmp")
    assert np.abs(read_image(tmp_path / "a.jpg").pixels[0] - smooth).max() < 6
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp").pixels, COLOUR.transpose(2, 0, 1))


def test_one_pixel_image_is_legal(tmp_path):
    Pillow.fromarray(GREY[:1, :1]).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").pixels.shape == (1, 1, 1)


def test_missing_empty_folder_and_foreign_files(tmp_path):
    refuses(tmp_path / "none.png", "does not exist")
    (tmp_path / "empty.png").touch()
    refuses(tmp_path / "empty.png", "empty", "0 bytes")
    (tmp_path / "text.png").write_text("this is no image")
    refuses(tmp_path / "text.png", "not an image", "PNG")
    (tmp_path / "dir.png").mkdir()
    refuses(tmp_path / "dir.png", "folder")


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1))
def test_cut_files_are_refused_or_whole(tmp_path_factory, ending, share):
    folder = tmp_path_factory.mktemp("cut")
    whole, cut = folder / f"whole.{ending}", folder / f"cut.{ending}"
    Pillow.fromarray(COLOUR).save(whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    try:
        image = read_image(cut)
    except DataError as error:
        assert str(cut) in str(error)
    else:  # only bytes after the last pixel are missing, such as PNG's end mark
        np.testing.assert_array_equal(image.pixels, read_image(whole).pixels)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_half_a_file_is_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Pillow.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuses(path, "truncated")


@pytest.mark.parametrize("ending", ["png", "tif"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_files_never_escape_as_other_errors(tmp_path_factory, ending, data):
    path = tmp_path_factory.mktemp("damage") / f"a.{ending}"
    Pillow.fromarray(GREY).save(path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_image(path, max_pixels=2**16)
    except DataError as error:
        assert str(path) in str(error)


def test_pixel_limit_is_checked_before_decoding_and_is_ours_alone(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Pillow.new("1", (2000, 2000)).save(path)
    refuses(path, "2000 x 2000", "max_pixels", max_pixels=10**6)
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)
    limit, lenient = Pillow.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own limit would warn or raise here
        assert read_mask(path).shape == (2000, 2000)
    assert limit == Pillow.MAX_IMAGE_PIXELS and lenient == ImageFile.LOAD_TRUNCATED_IMAGES
    tifffile.imwrite(tmp_path / "big.tif", np.zeros((100, 100), np.uint8))
    refuses(tmp_path / "big.tif", "100 x 100", max_pixels=9999)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, value):
    values = np.ones((4, 4), np.float32)
    values[1, 2] = value
    tifffile.imwrite(tmp_path / "a.tif", values)
    refuses(tmp_path / "a.tif", "1 NaN or infinite")


def test_tiff_with_pages_types_or_channels_that_do_not_fit(tmp_path):
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((5, 4, 4), np.uint8), photometric="minisblack")
    refuses(tmp_path / "pages.tif", "5 pages")
    tifffile.imwrite(tmp_path / "double.tif", np.zeros((4, 4), np.float64))
    refuses(tmp_path / "double.tif", "float64", "float32")
    tifffile.imwrite(
        tmp_path / "many.tif", np.zeros((4, 4, 6), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    refuses(tmp_path / "many.tif", "6 channels")


MASK = RNG.random((9, 13)) < 0.3


@pytest.mark.parametrize("high", [1, 255, 7])
def test_mask_of_two_values(tmp_path, high):
    Pillow.fromarray((MASK * high).astype(np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), MASK)


def test_mask_as_one_bit_palette_colour_and_alpha(tmp_path):
    Pillow.fromarray(MASK).save(tmp_path / "bit.png")
    indexed = Pillow.fromarray(MASK.astype(np.uint8), "P")
    indexed.putpalette([255, 255, 255, 0, 0, 0])  # white background, black target: the index decides
    indexed.save(tmp_path / "palette.png")
    colour = np.zeros((*MASK.shape, 3), np.uint8)
    colour[..., 1] = MASK * 40
    Pillow.fromarray(colour).save(tmp_path / "colour.png")
    alpha = np.dstack([MASK * 255] * 3 + [np.full(MASK.shape, 255)]).astype(np.uint8)
    Pillow.fromarray(alpha).save(tmp_path / "alpha.png")
    tifffile.imwrite(tmp_path / "bit.tif", MASK)
    for name in ("bit.png", "palette.png", "colour.png", "alpha.png", "bit.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), MASK, err_msg=name)


def test_label_map_counts_every_label(tmp_path):
    labels = RNG.integers(0, 200, (9, 13)).astype(np.uint8)
    Pillow.fromarray(labels).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), labels > 0)
    Pillow.fromarray(labels.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), labels > 0)


def test_soft_borders_are_cut_at_one_half(tmp_path):
    soft = np.array([[0, 0, 30, 127], [0, 128, 200, 255]], np.uint8)
    Pillow.fromarray(soft).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), soft >= 128)
    tifffile.imwrite(tmp_path / "m.tif", soft.astype(np.float32) / 255)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), soft >= 128)


def test_jpeg_ringing_is_no_target(tmp_path):
    block = np.zeros((32, 32), bool)
    block[8:16, 8:16] = True
    Pillow.fromarray((block * 250).astype(np.uint8)).save(tmp_path / "m.jpg", quality=60)
    assert (read_mask(tmp_path / "m.jpg") != block).mean() < 0.02


def test_classes_beside_255_are_ambiguous(tmp_path):
    Pillow.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "m.png")
    refuses(tmp_path / "m.png", "255", "ignore", read=read_mask)
