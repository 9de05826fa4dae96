"""Reading pixels: every kind of file keeps its values, every broken one is refused with a sentence."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageFile, ImageOps

from fewlabel.core.errors import DataError
from fewlabel.data import pixels
from fewlabel.data.pixels import FileError, count_pages, read_image, read_label_map, read_mask, read_page

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


def write_png(path: Path, values: np.ndarray, bits: int, header: tuple[int, int, int, int] | None = None) -> None:
    """A grey PNG by hand, since Pillow writes none below 8 bits; ``header`` is width, height, bits and colour type."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    planes = (values[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(values), -1).astype(np.uint8)
    rows = np.packbits(planes, axis=1)
    start = struct.pack(">IIBBBBB", *(header or (values.shape[1], values.shape[0], bits, 0)), 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


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
    values = np.arange(9 * 13).reshape(9, 13) % 2**bits
    write_png(tmp_path / "low.png", values, bits)
    image = read_image(tmp_path / "low.png")
    assert image.bit_depth == bits
    np.testing.assert_array_equal(image.pixels[0], values)


def test_sixteen_bit_png_is_kept_at_depth(tmp_path):
    values = RNG.integers(0, 2**14, (9, 13), dtype=np.uint16)  # a 14-bit sensor in a 16-bit file
    Pillow.fromarray(values).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert (image.dtype, image.bit_depth) == ("uint16", 16)
    np.testing.assert_array_equal(image.pixels[0], values)


def test_sixteen_bit_colour_png_is_refused_rather_than_squeezed(tmp_path):
    path = tmp_path / "deep.png"
    write_png(path, np.zeros((1, 18), np.uint8), 8, header=(3, 1, 16, 2))
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


@pytest.mark.parametrize("predictor", [1, 2, 3])
def test_float_tiff_with_predictor_is_read(tmp_path, predictor):
    values = RNG.random((9, 13)).astype(np.float32)
    picture, info = Pillow.fromarray(values), {317: predictor}
    if predictor == 2:  # differences of integers
        values = RNG.integers(0, 2**16, (9, 13)).astype(np.uint16)
        picture = Pillow.fromarray(values)
    picture.save(tmp_path / "a.tif", compression="tiff_adobe_deflate", tiffinfo=info)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels[0], values)


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
    tifffile.imwrite(tmp_path / "waves.tif", np.zeros((4, 4), np.complex64))
    refuses(tmp_path / "waves.tif", "complex64", "float32")
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


LABELS = {
    "uint8": RNG.integers(0, 256, (9, 13)),
    "uint16": RNG.integers(0, 2**16, (9, 13)),
    "int16": RNG.integers(-9, 2**15, (9, 13)),
    "int32": RNG.integers(-9, 2**31, (9, 13)),
    "uint32": RNG.integers(0, 2**31, (9, 13)),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("ending", ["tif", "npy"])
def test_label_map_keeps_stored_integers(tmp_path, kind, ending):
    labels, path = LABELS[kind].astype(kind), tmp_path / f"m.{ending}"
    (tifffile.imwrite if ending == "tif" else np.save)(path, labels)
    read = read_label_map(path)
    assert read.dtype == np.int32 and read.flags.c_contiguous
    np.testing.assert_array_equal(read, labels)
    refuses(path, "9 x 13", read=read_label_map, max_pixels=116)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_label_map_of_few_bits(tmp_path, bits, palette):
    labels = RNG.integers(0, 2**bits, (9, 13)).astype(np.uint8)
    path = tmp_path / "m.png"
    if palette:
        picture = Pillow.fromarray(labels, "P")
        picture.putpalette(RNG.integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
        picture.save(path, bits=bits)
        colours = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(read_image(path).pixels, colours.transpose(2, 0, 1))
    else:
        write_png(path, labels, bits)
    np.testing.assert_array_equal(read_label_map(path), labels)


def test_label_map_of_deep_and_indexed_files(tmp_path):
    deep = RNG.integers(0, 2**16, (9, 13)).astype(np.uint16)
    Pillow.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "deep.png"), deep)
    indexed = Pillow.fromarray(GREY, "P")
    indexed.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    for name in ("m.tif", "m.bmp"):
        indexed.save(tmp_path / name)
        np.testing.assert_array_equal(read_label_map(tmp_path / name), GREY)
    indexed.save(tmp_path / "m.png", transparency=3)
    np.testing.assert_array_equal(read_label_map(tmp_path / "m.png"), GREY)
    np.save(tmp_path / "m.npy", GREY.astype(np.int64))
    np.testing.assert_array_equal(read_label_map(tmp_path / "m.npy"), GREY)


def test_label_map_of_colours_floats_jpeg_or_huge_numbers_is_refused(tmp_path):
    Pillow.fromarray(COLOUR).save(tmp_path / "rgb.png")
    refuses(tmp_path / "rgb.png", "3 channels", "grey or palette PNG", read=read_label_map)
    Pillow.fromarray(GREY).save(tmp_path / "m.jpg")
    refuses(tmp_path / "m.jpg", "JPEG", "PNG", read=read_label_map)
    Pillow.fromarray(GREY).save(tmp_path / "jpeg.tif", compression="jpeg")
    refuses(tmp_path / "jpeg.tif", "JPEG", read=read_label_map)
    tifffile.imwrite(tmp_path / "m.tif", GREY.astype(np.float32))
    refuses(tmp_path / "m.tif", "float32", "integers", read=read_label_map)
    np.save(tmp_path / "m.npy", np.array([[0, 2**31]]))
    refuses(tmp_path / "m.npy", "2147483648", read=read_label_map)


def write_packed_tiff(path: Path, values: np.ndarray, bits: int, order: str = "<") -> None:
    """An uncompressed grey TIFF by hand, samples of any number of bits without gaps, rows starting on bytes."""
    planes = (values[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(values), -1).astype(np.uint8)
    data = np.packbits(planes, axis=1).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(data)))
    data += bytes(len(data) % 2)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(start + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize(("bits", "order"), [(1, "<"), (2, ">"), (4, "<"), (8, ">"), (12, "<")])
def test_packed_tiff_gives_stored_values(tmp_path, bits, order):
    values = RNG.integers(0, 2**bits, (9, 13))
    write_packed_tiff(tmp_path / "a.tif", values, bits, order)
    image = read_image(tmp_path / "a.tif")
    assert image.bit_depth == bits
    np.testing.assert_array_equal(image.pixels[0], values)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.tif"), values)


@pytest.mark.parametrize(("bits", "order"), [(12, ">"), (10, "<"), (14, "<"), (14, ">")])
def test_packed_tiff_that_no_decoder_here_unpacks_is_named(tmp_path, bits, order):
    write_packed_tiff(tmp_path / "a.tif", RNG.integers(0, 2**bits, (9, 13)), bits, order)
    refuses(tmp_path / "a.tif", f"packs samples of {bits} bits", "16 bits per sample")


def test_wide_tiff_keeps_what_float32_keeps(tmp_path):
    kelvin = 290 + RNG.random((9, 13))
    tifffile.imwrite(tmp_path / "t.tif", kelvin)
    image = read_image(tmp_path / "t.tif")
    assert (image.dtype, image.bit_depth) == ("float64", 64)
    np.testing.assert_array_equal(image.pixels[0], kelvin.astype(np.float32))
    tifffile.imwrite(tmp_path / "i.tif", np.array([[-(2**24), 2**24]], np.int32))
    assert read_image(tmp_path / "i.tif").pixels.tolist() == [[[-(2**24), 2**24]]]
    tifffile.imwrite(tmp_path / "j.tif", np.array([[-(2**24) - 1, 0]], np.int32))
    refuses(tmp_path / "j.tif", "16777217", "float32")
    tifffile.imwrite(tmp_path / "k.tif", np.array([[1e300, 0]]))
    refuses(tmp_path / "k.tif", "1 NaN or infinite")


def save_turned(path: Path, orientation: int, values: np.ndarray) -> None:
    """Save values as stored, with the tag of an orientation."""
    if path.name.startswith("plain"):
        tifffile.imwrite(path, values, extratags=[(274, "H", 1, orientation, True)])
        return
    exif = Pillow.Exif()
    exif[274] = orientation
    options = {"lzw.tif": {"compression": "tiff_lzw"}, "a.jpg": {"quality": 100}}.get(path.name, {})
    picture = Pillow.fromarray(values)
    if path.name.startswith("palette") and picture.mode == "L":
        picture.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    if orientation in range(1, 9) or path.suffix != ".tif":
        picture.save(path, exif=exif, **options)
    else:  # Pillow writes only sensible tags into a TIFF
        picture.save(path, tiffinfo={274: orientation})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "lzw.tif", "palette.tif", "plain.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_orientation_is_that_of_the_display(tmp_path, orientation, name, channels):
    path = tmp_path / name
    save_turned(path, orientation, GREY if channels == 1 else COLOUR)
    with Pillow.open(io.BytesIO(path.read_bytes())) as opened:  # by name Pillow would turn plain grey TIFFs wrongly
        shown = np.asarray(ImageOps.exif_transpose(opened))
    image = read_image(path)
    assert image.size == shown.shape[:2] == ((9, 13) if orientation < 5 else (13, 9))
    planes = np.atleast_3d(shown).transpose(2, 0, 1)
    np.testing.assert_array_equal(image.pixels, np.broadcast_to(planes, image.pixels.shape))  # a palette has 3 channels


@pytest.mark.parametrize("orientation", [0, 2, 6, 9, 65535])
@pytest.mark.parametrize("name", ["m.png", "palette.tif", "lzw.tif", "plain.tif"])
def test_masks_and_label_maps_turn_like_images_and_senseless_tags_do_not(tmp_path, orientation, name):
    path = tmp_path / name
    save_turned(path, orientation, (MASK * 3).astype(np.uint8))
    shown = {2: MASK[:, ::-1], 6: np.rot90(MASK, -1)}.get(orientation, MASK)
    np.testing.assert_array_equal(read_mask(path), shown)
    np.testing.assert_array_equal(read_label_map(path), 3 * shown)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0nonsense" * 9])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_damaged_exif_does_not_cost_the_image(tmp_path, block, name):
    Pillow.fromarray(GREY).save(tmp_path / name, exif=block)
    assert read_image(tmp_path / name).size == (9, 13)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_pages_of_a_tiff_are_addressed(tmp_path, compression):
    path = tmp_path / "film.tif"
    frames = RNG.integers(0, 2**14, (5, 9, 13)).astype(np.uint16)
    if compression:
        first, *others = map(Pillow.fromarray, frames)
        first.save(path, save_all=True, append_images=others, compression=compression)
    else:
        tifffile.imwrite(path, frames, photometric="minisblack")
    assert count_pages(path) == 5
    for page in (3, 0, 4):
        image = read_page(path, page)
        assert (image.id, image.dtype, image.path) == (f"film__{page:06d}", "uint16", path)
        np.testing.assert_array_equal(image.pixels[0], frames[page])
    assert read_page(path, 1, "x").id == "x"
    refuses(path, "5 pages", "format video")
    for page in (5, -1):
        refuses(path, "5 pages", f"no page {page}", read=lambda path, page=page: read_page(path, page))
    refuses(path, "9 x 13", read=lambda path: read_page(path, 2, max_pixels=116))


def test_pages_of_other_files(tmp_path):
    Pillow.fromarray(GREY).save(tmp_path / "a.png")
    assert count_pages(tmp_path / "a.png") == 1
    np.testing.assert_array_equal(read_page(tmp_path / "a.png", 0).pixels[0], GREY)
    refuses(tmp_path / "a.png", "no page 1", read=lambda path: read_page(path, 1))
    refuses(tmp_path / "none.tif", "does not exist", read=count_pages)
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08\0")
    refuses(tmp_path / "cut.tif", "damaged", read=count_pages)


@pytest.mark.parametrize("kind", ["bool", "uint8", ">u2", "int32", "float16", "float64"])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 1), (9, 13, 3), (1, 9, 13), (3, 9, 13)])
def test_npy_image(tmp_path, kind, shape):
    values = (RNG.random(shape) * 200).astype(kind)
    np.save(tmp_path / "a.npy", np.asfortranarray(values) if kind == "float64" else values)
    image = read_image(tmp_path / "a.npy")
    planes = values[None] if values.ndim == 2 else values if shape[0] < 4 else values.transpose(2, 0, 1)
    assert image.dtype == ("uint8" if kind == "bool" else values.dtype.name)
    assert image.bit_depth == (1 if kind == "bool" else 8 * values.dtype.itemsize)
    np.testing.assert_array_equal(image.pixels, planes.astype(np.float32))


def test_npy_stack_is_read_by_page(tmp_path):
    frames, path = RNG.integers(0, 2**14, (5, 9, 13)).astype(np.uint16), tmp_path / "film.npy"
    np.save(path, frames)
    assert count_pages(path) == 5
    for page in (4, 0):
        np.testing.assert_array_equal(read_page(path, page).pixels, frames[page][None])
    refuses(path, "no page 5", read=lambda path: read_page(path, 5))
    refuses(path, "no page -1", read=lambda path: read_page(path, -1))
    refuses(path, "(5, 9, 13)", "format video")
    np.save(path, frames[:3])
    assert count_pages(path) == 1
    np.testing.assert_array_equal(read_page(path, 0).pixels, read_image(path).pixels)


def test_npy_of_unclear_shape_or_type_is_refused(tmp_path):
    for shape in ((3, 9, 3), (1, 5, 3), (5, 9, 13), (9,), (1, 3, 9, 13)):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        refuses(tmp_path / "a.npy", str(shape), "1 or 3 channels")
    np.save(tmp_path / "a.npy", np.zeros((9, 13), np.complex64))
    refuses(tmp_path / "a.npy", "no plain numbers")
    np.save(tmp_path / "a.npy", np.full((9, 13), np.nan))
    refuses(tmp_path / "a.npy", "117 NaN")
    np.save(tmp_path / "a.npy", np.zeros((100, 100), np.uint8))
    refuses(tmp_path / "a.npy", "100 x 100", max_pixels=9999)


@pytest.mark.parametrize("rows", [1, 3, 512])
def test_masks_are_counted_by_rows(tmp_path, monkeypatch, rows):
    """What decides how a mask is read may stand in any row."""
    monkeypatch.setattr(pixels, "_ROWS", rows)
    soft = np.zeros((9, 5), np.uint8)
    soft[1, 1], soft[7, 2], soft[8, 3] = 255, 90, 200
    Pillow.fromarray(soft).save(tmp_path / "soft.png")
    np.testing.assert_array_equal(pixels.read_mask(tmp_path / "soft.png"), soft >= 128)
    mixed = np.zeros((9, 5), np.uint8)
    mixed[1, 1], mixed[8, 3] = 3, 255
    Pillow.fromarray(mixed).save(tmp_path / "mixed.png")
    with pytest.raises(FileError, match=r"class numbers \[3\] and also 255"):
        pixels.read_mask(tmp_path / "mixed.png")
