"""Every decoder against damaged files: a sentence or an image, soon and in little memory; never anything else.

The work is done in a second process (this file, run as a script) whose memory is limited; it prints what went wrong.
"""

import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image as Pillow

from fewlabel.data.film import ENDINGS, Film
from fewlabel.data.pixels import MAX_PIXELS, FileError, count_pages, read_image, read_label_map, read_mask, read_page

MEMORY = 2**30
SECONDS = 5.0
LEAST = 500  # files; fewer would mean that the generator is broken


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = bytes(64)) -> bytes:
    """A little-endian TIFF of one page; tags as (type, count, value)."""
    entries = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def npy(header: str, data: bytes = bytes(64)) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + data


def sound(folder: Path) -> None:
    """One small file of every kind that is read."""
    rng = np.random.default_rng(0)
    grey, deep = rng.integers(0, 256, (24, 31), np.uint8), rng.integers(0, 2**16, (24, 31)).astype(np.uint16)
    colour = Pillow.fromarray(rng.integers(0, 256, (24, 31, 3), np.uint8))
    exif = Pillow.Exif()
    exif[274] = 6
    Pillow.fromarray(grey).save(folder / "grey.png", exif=exif)
    Pillow.fromarray(deep).save(folder / "deep.png")
    colour.convert("P").save(folder / "palette.png")
    Pillow.fromarray(grey > 99).save(folder / "bit.png")
    colour.save(folder / "colour.jpg", exif=exif)
    colour.save(folder / "progressive.jpg", progressive=True)
    colour.save(folder / "colour.bmp")
    Pillow.fromarray(grey).save(folder / "grey.bmp")
    tifffile.imwrite(folder / "plain.tif", deep)
    tifffile.imwrite(folder / "big.tif", grey, bigtiff=True, byteorder=">")
    tifffile.imwrite(folder / "deflate.tif", deep, compression="zlib", predictor=True)
    floats = Pillow.fromarray(deep.astype(np.float32))
    floats.save(folder / "floats.tif", compression="tiff_adobe_deflate", tiffinfo={317: 3})
    tifffile.imwrite(folder / "tiles.tif", deep, tile=(16, 16))
    tifffile.imwrite(folder / "pages.tif", np.stack([grey] * 4), photometric="minisblack")
    for name, options in (("lzw", {"compression": "tiff_lzw"}), ("jpeg", {"compression": "jpeg"}), ("fax", {})):
        picture = Pillow.fromarray(grey > 99) if name == "fax" else Pillow.fromarray(grey)
        picture.save(folder / f"{name}.tif", **({"compression": "group4"} if name == "fax" else options))
    colour.convert("P").save(folder / "palette.tif")
    np.save(folder / "grey.npy", deep)
    np.save(folder / "stack.npy", np.stack([deep] * 4))
    for name, codec, kind in (("a.avi", "mjpeg", "yuvj420p"), ("a.mp4", "mpeg4", "yuv420p"), ("a.mkv", "ffv1", "gray")):
        film(folder / name, codec, kind)
    film(folder / "a.mov", "png", "gray")


def film(path: Path, codec: str, kind: str) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, kind
        stream.codec_context.gop_size = 4
        for number in range(8):
            values = np.random.default_rng(number).integers(0, 256, (48, 64), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="gray")))
        container.mux(stream.encode())


def hostile() -> Iterator[tuple[str, bytes]]:
    """Files whose headers lie, by name."""
    for width, height in ((2**31 - 1, 2**31 - 1), (16384, 16384), (2**31 - 1, 1), (0, 5), (100, 2**24)):
        for bits, colour in ((1, 0), (8, 0), (16, 0), (8, 2), (8, 6), (8, 3)):
            yield f"huge-{width}-{height}-{bits}-{colour}.png", png(width, height, bits, colour, bytes(99))
    yield "bomb.png", png(16384, 16384, 8, 2, bytes(3 * 2**22))
    for side in (16383, 2**16 - 1, 2**32 - 1, 0):
        for bits, kind in ((8, 1), (16, 1), (32, 3), (64, 3), (1, 1), (12, 1)):
            for more in (
                {},
                {259: (3, 1, 5)},
                {259: (3, 1, 8)},
                {277: (3, 1, 4)},
                {322: (4, 1, side), 323: (4, 1, side)},
            ):
                tags = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, bits), 259: (3, 1, 1), 262: (3, 1, 1)}
                tags |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, side), 279: (4, 1, 64), 339: (3, 1, kind)}
                yield f"huge-{side}-{bits}-{sorted(more)}.tif", tiff(tags | more)
    count = {
        256: (4, 1, 9),
        257: (4, 1, 9),
        258: (3, 2**31, 8),
        273: (4, 2**31, 8),
        279: (4, 2**31, 8),
        277: (3, 1, 65535),
    }
    yield "counts.tif", tiff(count)
    loop = bytearray(
        tiff({256: (4, 1, 4), 257: (4, 1, 4), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8), 279: (4, 1, 16)})
    )
    loop[-4:] = struct.pack("<I", 8 + 64)
    yield "loop.tif", bytes(loop)
    for width, height in ((2**31 - 1, 2**31 - 1), (20000, 20000), (-5, 5), (5, -(2**31))):
        for bits in (1, 8, 24, 32):
            header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 2**32 - 1, 0)
            yield f"huge-{width}-{height}-{bits}.bmp", b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + header + bytes(99)
    jpeg = bytes.fromhex("ffd8ffc0001108ffffffff03011100021100031100ffda000c03010002000300003f00") + bytes(99)
    yield "huge.jpg", jpeg
    for shape in ("(100000, 100000)", "(2, 999999999)", "(5, 9)", "(1, 1, 1, 1)", "()", "(9" + "9" * 300 + ",)"):
        for kind in ("<f4", "|O", "|V8", "<M8[s]", "<f8", "<c16"):
            header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}"
            yield f"huge-{len(shape)}-{kind[1:3]}.npy", npy(header)
    yield (
        "nan.npy",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4)}", struct.pack("<8f", *[float("nan")] * 8)),
    )


def damaged(folder: Path) -> Iterator[Path]:
    """Write one damaged file after the other."""
    rng = np.random.default_rng(1)
    sound_files = sorted(folder.iterdir())
    starts = [path.read_bytes()[:16] for path in sound_files]
    for path in sound_files:
        content = path.read_bytes()
        variants = [content[: int(share * len(content))] for share in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99)]
        variants += [starts[int(k)] + content[16:] for k in rng.permutation(len(starts))[:4]]
        for flips in (1, 1, 1, 2, 4, 8, 16, 64):
            for reach in (64, 512, len(content)):  # headers, tables, anywhere
                changed = bytearray(content)
                for place in rng.integers(0, min(reach, len(content)), flips):
                    changed[place] ^= 1 << int(rng.integers(8)) if flips < 8 else int(rng.integers(1, 256))
                variants.append(bytes(changed))
        for number, variant in enumerate(variants):
            target = folder / f"{path.stem}-{number}{path.suffix}"
            target.write_bytes(variant)
            yield target
    for name, content in hostile():
        (folder / name).write_bytes(content)
        yield folder / name
    values = np.ones((8, 8), np.float32)
    values[3, 4] = np.nan
    tifffile.imwrite(folder / "nan.tif", values)
    yield folder / "nan.tif"


def play(path: Path) -> None:
    """Some frames of a video."""
    video = Film(path, MAX_PIXELS)
    try:
        for number in (0, video.count - 1, 1):
            if number < video.count:
                check(video.frame(number))
    finally:
        video.close()


def check(values: np.ndarray) -> None:
    """What was read has to be an image."""
    assert values.ndim in (2, 3) and values.size > 0 and np.isfinite(values).all()


READERS = {
    "image": lambda path: check(read_image(path).pixels),
    "mask": lambda path: check(read_mask(path)),
    "label map": lambda path: check(read_label_map(path)),
    "page": lambda path: check(read_page(path, min(1, count_pages(path) - 1)).pixels),
}


def attempt(path: Path) -> Iterator[str]:
    """What goes wrong with one file."""
    readers = {"film": play} if path.suffix in ENDINGS else READERS
    for name, read in readers.items():
        start = time.monotonic()
        try:
            read(path)
        except FileError as error:
            sentence = str(error)
            if str(path) not in sentence or "\n" in sentence or not sentence.endswith("."):
                yield f"{name} of {path.name}: no sentence: {sentence}"
        except BaseException as error:
            yield f"{name} of {path.name}: {error!r}"
        if time.monotonic() - start > SECONDS:
            yield f"{name} of {path.name}: {time.monotonic() - start:.1f} s"


def test_damaged_files(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] >= LEAST and 0 < found["readable"] < found["files"]
    assert found["wrong"] == [] and found["megabytes"] < MEMORY / 2**20


def main(folder: Path) -> None:
    sound(folder)
    for path in sorted(folder.iterdir()):
        play(path) if path.suffix in ENDINGS else READERS["page"](
            path
        )  # sound files are read, or the rest means nothing
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEMORY, -1))  # twice: memory that is asked for and never touched
    files, wrong, readable = 0, [], 0
    for path in damaged(folder):
        files += 1
        wrong += attempt(path)
        readable += not any(
            refused(partial(read, path)) for read in (play if path.suffix in ENDINGS else READERS["page"],)
        )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"files": files, "readable": readable, "wrong": wrong, "megabytes": (after - before) / 1024}))


def refused(read: partial) -> bool:
    try:
        read()
    except FileError:
        return True
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
