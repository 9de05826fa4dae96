"""Videos: every frame by its number, in any order, whatever the container knows of times."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from fewlabel.core.errors import DataError
from fewlabel.data.film import Film
from fewlabel.data.pixels import FileError

COUNT = 40
LIMIT = 2**20
KINDS = {  # ending, encoder, pixel format, options of the encoder
    "motion-jpeg.avi": ("mjpeg", "yuvj420p", {}),
    "lossless-grey.mkv": ("ffv1", "gray", {}),
    "lossless-deep.mkv": ("ffv1", "gray16le", {}),
    "colour.mov": ("png", "rgb24", {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "reordered.mp4": ("mpeg4", "yuv420p", {"bf": "2"}),
    "reordered.avi": ("libx264", "yuv420p", {"bf": "2"}),
    "reordered.mkv": ("mpeg4", "yuv420p", {"bf": "2"}),
}


def grey(number: int) -> np.ndarray:
    """Frame of a test video, uint8 (48, 64): its number is its brightness, and a stripe tells rows from columns."""
    frame = np.full((48, 64), 5 * number + 16, np.uint8)
    frame[:8] = 255
    return frame


def record(
    path: Path, codec: str, pixel_format: str, options: dict[str, str], count: int = COUNT, gop: int = 10
) -> Path:
    """Encode `grey` frames; the 16-bit format holds 60 times their values."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.gop_size = gop
        stream.bit_rate = 4_000_000
        for number in range(count):
            if pixel_format == "gray16le":
                frame = av.VideoFrame.from_ndarray(grey(number).astype(np.uint16) * 60, format="gray16le")
            else:
                frame = av.VideoFrame.from_ndarray(np.dstack([grey(number)] * 3), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(params=KINDS)
def video(request, tmp_path) -> Path:
    return record(tmp_path / request.param, *KINDS[request.param])


def number_of(values: np.ndarray) -> int:
    """Which test frame a decoded one is."""
    level = np.median(values[10:].astype(float)) / (60 if values.dtype == np.uint16 else 1)
    return round((level - 16) / 5)


def test_frames_in_order_backwards_and_at_random(video):
    film = Film(video, LIMIT)
    assert film.count == COUNT
    order = [*range(COUNT), *range(COUNT - 1, -1, -4), *np.random.default_rng(0).permutation(COUNT)]
    assert [number_of(film.frame(number)) for number in order] == order
    film.close()
    assert number_of(film.frame(7)) == 7


def test_frames_are_what_the_whole_video_holds(video):
    with av.open(str(video)) as container:
        frames = [
            frame.to_ndarray() if "gray" in frame.format.name else frame.to_ndarray(format="rgb24")
            for frame in container.decode(video=0)
        ]
    film = Film(video, LIMIT)
    for number in (23, 4, 5, COUNT - 1):
        values = film.frame(number)
        np.testing.assert_array_equal(values, frames[number])
        assert values.dtype == (np.uint16 if "deep" in video.name else np.uint8)
        assert values.shape == ((48, 64) if "grey" in video.name or "deep" in video.name else (48, 64, 3))
    for number in (-1, COUNT):
        with pytest.raises(FileError, match=f"40 frames, so there is no frame {number}"):
            film.frame(number)


class CountingFilm(Film):
    """Counts how often decoding started anew."""

    starts = 0

    def _start(self, time: int | None = None) -> None:
        self.starts += 1
        super()._start(time)


def test_rising_order_decodes_each_frame_once(tmp_path):
    film = CountingFilm(record(tmp_path / "a.mp4", *KINDS["reordered.mp4"], gop=COUNT), LIMIT)
    for number in (0, 1, 2, 9, 30):
        film.frame(number)
    assert film.starts == 1
    film.frame(3)
    assert film.starts == 2


def test_key_frames_are_short_cuts(tmp_path):
    film = CountingFilm(record(tmp_path / "a.mp4", *KINDS["reordered.mp4"], gop=5), LIMIT)
    numbers = [0, *range(COUNT - 1, 10, -4)]  # with the last before a key frame, which some seeking misses
    for number in numbers:
        film.frame(number)
    assert film.starts == len(numbers)


def test_grey_deeper_than_eight_bits_is_kept(tmp_path):
    film = Film(record(tmp_path / "a.mkv", "ffv1", "gray16le", {}), LIMIT)
    np.testing.assert_array_equal(film.frame(11), grey(11).astype(np.uint16) * 60)


def test_damaged_files(tmp_path):
    path = record(tmp_path / "a.avi", *KINDS["motion-jpeg.avi"])
    content = path.read_bytes()
    with pytest.raises(FileError, match="48 x 64 pixels, more than the limit of 3071"):
        Film(path, 48 * 64 - 1)
    for name, data in (("none.avi", None), ("empty.avi", b""), ("text.avi", b"text" * 99), ("head.avi", content[:300])):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(FileError) as caught:
            Film(tmp_path / name, LIMIT)
        assert name in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")
    (tmp_path / "half.avi").write_bytes(content[: len(content) // 2])
    film = Film(tmp_path / "half.avi", LIMIT)
    assert 10 < film.count < COUNT and number_of(film.frame(9)) == 9


def test_playlist_under_the_name_of_a_video_opens_nothing_else(tmp_path):
    record(tmp_path / "secret.mkv", "ffv1", "gray", {})
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile secret.mkv\n")
    with av.open(str(playlist)) as container:  # FFmpeg on its own would follow it
        assert container.format.name == "concat"
    with pytest.raises(FileError):
        Film(playlist, LIMIT)


def test_sound_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(FileError, match="holds no video stream"):
        Film(tmp_path / "a.mkv", LIMIT)


def test_without_pyav_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = record(tmp_path / "a.mkv", "ffv1", "gray", {}, count=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"needs PyAV: pip install 'fewlabel\[video\]'\.$"):
        Film(path, LIMIT)


def test_pyav_is_not_imported_before_a_video_is_opened():
    code = "import sys, fewlabel.data.readers, fewlabel.data.film; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
