"""Sequences in one file: what is found, how frames are named and grouped, and that each is the right one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from tests.data.readers.contract import pictures, save_pictures
from tests.data.test_film import KINDS, number_of, record

from fewlabel.core.errors import DataError
from fewlabel.data.readers import find_layout, open_folder

FRAMES = np.random.default_rng(0).integers(0, 2**14, (5, 9, 13)).astype(np.uint16)


def make(root: Path) -> Path:
    """A folder with a video, a stack of pages, a stack of NumPy and single images."""
    save_pictures(root)
    save_pictures(root / "night", ".tif")
    record(root / "night" / "film.avi", *KINDS["motion-jpeg.avi"], count=12)
    tifffile.imwrite(root / "pages.tif", FRAMES, photometric="minisblack")
    np.save(root / "night" / "stack.npy", FRAMES[::-1])
    np.save(root / "x__000000.npy", FRAMES[0])  # alone in its file, whatever its name looks like
    (root / ".hidden.mp4").write_bytes(b"no video")
    return root


def test_files_of_all_kinds(tmp_path):
    root = make(tmp_path / "set")
    layout = find_layout(root)
    assert layout.sentence() == "format: video, because it holds video files"
    data = open_folder(root)
    single = {*"abc", "night__a", "night__b", "night__c", "x__000000"}
    pages = {f"{name}__{number:06d}" for name in ("pages", "night__stack") for number in range(5)}
    film = {f"night__film__{number:06d}" for number in range(12)}
    assert set(data.train_ids) == single | pages | film and data.test_ids == () and data.problems == ()
    assert list(data.train_ids) == sorted(data.train_ids)
    for number in (4, 0, 3):
        np.testing.assert_array_equal(data.image(f"pages__{number:06d}").pixels, FRAMES[number][None])
        np.testing.assert_array_equal(data.image(f"night__stack__{number:06d}").pixels, FRAMES[4 - number][None])
        image = data.image(f"night__film__{2 * number:06d}")
        assert number_of(image.pixels[0]) == 2 * number and image.pixels.shape == (3, 48, 64)
        assert (image.id, image.dtype, image.bit_depth) == (f"night__film__{2 * number:06d}", "uint8", 8)
        assert image.path == root / "night" / "film.avi"
    np.testing.assert_array_equal(data.image("night__b").pixels[0], pictures()["b"])
    groups = {id: data.group(id) for id in data.train_ids}
    assert {groups[id] for id in film} == {"night/film.avi"}
    assert groups["pages__000002"] == "pages.tif" and groups["night__stack__000002"] == "night/stack.npy"
    assert groups["night__a"] == groups["night__b"] == "night" and groups["a"] == "a"
    assert groups["x__000000"] == "x__000000"
    assert not data.has_mask("pages__000000")
    with pytest.raises(DataError, match="has no labels: add them"):
        data.labelled("pages__000000")
    with pytest.raises(DataError, match="no image 'pages__000005'"):
        data.image("pages__000005")


def test_two_videos_in_turn(tmp_path):
    for name in ("a.mp4", "b.mkv"):
        record(tmp_path / name, *KINDS["reordered.mp4"], count=15)
    data = open_folder(tmp_path)
    order = [(name, number) for number in (3, 4, 2, 14) for name in "ab"]
    assert [number_of(data.image(f"{name}__{number:06d}").pixels[0]) for name, number in order] == [n for _, n in order]


def test_one_file_as_the_root(tmp_path):
    path = record(tmp_path / "film.mp4", *KINDS["reordered.mp4"], count=3)
    data = open_folder(path)
    assert data.train_ids == ("film__000000", "film__000001", "film__000002") and data.name == "film.mp4"
    assert data.group("film__000001") == "film.mp4" and number_of(data.image("film__000002").pixels[0]) == 2


@pytest.mark.parametrize("name", ["stack.npy", "stack.tif"])
def test_stacks_without_video_are_recognised(tmp_path, name):
    (np.save if name.endswith("npy") else tifffile.imwrite)(tmp_path / name, FRAMES)
    assert find_layout(tmp_path).sentence() == "format: video, because it holds files of several frames"
    assert len(open_folder(tmp_path).train_ids) == 5


def test_single_images_are_plain(tmp_path):
    save_pictures(tmp_path, ".tif")
    np.save(tmp_path / "d.npy", FRAMES[0])
    (tmp_path / "e.npy").write_bytes(b"")
    assert find_layout(tmp_path).format == "plain"


def test_damaged_files_name_themselves_and_others_are_used(tmp_path):
    save_pictures(tmp_path)
    (tmp_path / "film.mp4").write_bytes(b"no video")
    (tmp_path / "cut.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match="2 problems, the first: .*cut.tif is truncated or damaged"):
        open_folder(tmp_path)
    data = open_folder(tmp_path, strict=False)
    assert {problem.id for problem in data.problems} == {"film", "cut"} and data.train_ids == ("a", "b", "c")
    assert open_folder(tmp_path, exclude=frozenset(("film", "cut"))).train_ids == ("a", "b", "c")


def test_files_that_make_the_same_ids(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        record(tmp_path / name, *KINDS["mpeg4.avi"], count=2)
    with pytest.raises(DataError, match="a.mkv and a.mp4 for the same id"):
        open_folder(tmp_path)


def test_pixel_limit(tmp_path):
    record(tmp_path / "film.mp4", *KINDS["reordered.mp4"], count=2)
    with pytest.raises(DataError, match="48 x 64 pixels, more than the limit of 100"):
        open_folder(tmp_path, max_pixels=100)
    np.save(tmp_path / "stack.npy", FRAMES)
    (tmp_path / "film.mp4").unlink()
    with pytest.raises(DataError, match="9 x 13 pixels, more than the limit of 100"):
        open_folder(tmp_path, max_pixels=100).image("stack__000000")


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="holds no video and no image: expected files"):
        open_folder(tmp_path, "video")
    (tmp_path / "film.txt").touch()
    with pytest.raises(DataError, match="holds no video and no image"):
        open_folder(tmp_path / "film.txt", "video")


def test_frames_read_by_several_threads(tmp_path):
    record(tmp_path / "film.mp4", *KINDS["reordered.mp4"], count=40)
    record(tmp_path / "other.mp4", *KINDS["motion-jpeg.avi"], count=40)
    data = open_folder(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda id: number_of(data.image(id).pixels[0]), data.train_ids))
    assert found == [*range(40), *range(40)]


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_every_so_many_frames_of_each_group(tmp_path, every):
    data = open_folder(make(tmp_path / "set"), every=every)
    whole = open_folder(tmp_path / "set")
    groups = {}
    for id in whole.train_ids:
        groups.setdefault(whole.group(id), []).append(id)
    expected = [id for group in groups.values() for id in group[::every]]
    assert sorted(expected) == list(data.train_ids)
    assert {"a", "b", "c", "x__000000", "pages__000000"} <= set(data.train_ids)
    rejected = frozenset(["pages__000000", "a"])  # leaving out a frame moves no other
    left = open_folder(tmp_path / "set", exclude=rejected, every=every)
    assert set(left.train_ids) == set(data.train_ids) - rejected


def test_animations_are_refused_in_a_sentence(tmp_path):
    frames = [Pillow.fromarray((frame >> 6).astype(np.uint8)) for frame in FRAMES]
    for name in ("gif/a.gif", "png/a.png"):
        (tmp_path / name).parent.mkdir()
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"a.gif is an animation, which is not read: save it as a video"):
        open_folder(tmp_path / "gif")
    with pytest.raises(DataError, match=r"a.png is an animated PNG of 5 frames: save it as a video"):
        open_folder(tmp_path / "png").image("a")
    frames[0].save(tmp_path / "png/b.png")
    (tmp_path / "gif/a.gif").rename(tmp_path / "png/c.gif")
    data = open_folder(tmp_path / "png", "video", strict=False)
    assert data.image("b").size == (9, 13)
    assert [problem.file.name for problem in data.problems] == ["c.gif"]
