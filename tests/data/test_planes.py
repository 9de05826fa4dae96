"""Training on images that are read by windows: the same crops as from the image held whole."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from fewlabel.core.masks import encode, encode_many
from fewlabel.core.radiometry import Radiometry
from fewlabel.core.types import Image
from fewlabel.data import augment, planes
from fewlabel.data.augment import AugmentConfig, crop_batch
from fewlabel.data.joined import PREFIX, JoinedDataset
from fewlabel.data.large import LargeImage
from fewlabel.data.planes import ObjectPlane, TargetPlane, WeightPlane
from fewlabel.data.pool import PatchPool, loaders, unlabelled_loaders
from fewlabel.data.readers import open_folder
from fewlabel.data.windows import StoredWindows, TiffWindows

SIZE = (210, 170)


def drawn(rng: np.random.Generator, count: int = 25) -> np.ndarray:
    """Masks bool (N, H, W): rectangles of all sizes; some touch, cover each other, or are larger than a crop."""
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks:
        height, width = rng.choice([1, 2, 3, 9, 30, 90], 2)
        top, left = rng.integers(0, SIZE[0] - height + 1), rng.integers(0, SIZE[1] - width + 1)
        mask[top : top + height, left : left + width] = rng.random((height, width)) < rng.choice([0.5, 1])
        mask[top, left] = True
    return masks


def make(root, ending: str, count: int = 25):
    """A COCO data set of one image with objects and ignored regions."""
    rng = np.random.default_rng(count)
    pixels = rng.integers(900, 1200, SIZE).astype(np.uint16 if ending != ".jpg" else np.uint8)
    path = root / "images" / f"a{ending}"
    path.parent.mkdir()
    if ending == ".npy":
        np.save(path, pixels)
    elif ending == ".tif":
        tifffile.imwrite(path, pixels, tile=(32, 48), compression="zlib")
    else:
        Pillow.fromarray(pixels).save(path)
    masks = [*drawn(rng, count), *drawn(rng, 3)]
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": int(number > count),
            "segmentation": {"size": list(SIZE), "counts": encode(mask)["counts"].decode()},
        }
        for number, mask in enumerate(masks, 1)
    ]
    images = [{"id": 1, "file_name": path.name, "height": SIZE[0], "width": SIZE[1]}]
    value = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (root / "instances_train.json").write_text(json.dumps(value))
    return root


def both(data, load, monkeypatch):
    """The patch of the only image, read whole and read by windows."""
    (id,) = data.train_ids
    whole = load(data, [id])[0]()
    monkeypatch.setattr("fewlabel.data.large.HELD", 100)
    monkeypatch.setattr(augment, "BAND", 37)
    return whole, load(data, [id])[0]()


@pytest.mark.parametrize("policy", ["standard", "min-max"])
@pytest.mark.parametrize("ending", [".tif", ".npy", ".png", ".jpg"])
def test_crops_of_a_large_image_are_those_of_the_whole(tmp_path, monkeypatch, ending, policy):
    data = open_folder(make(tmp_path, ending), "coco", radiometry=Radiometry(policy=policy))
    whole, large = both(data, loaders, monkeypatch)
    assert not isinstance(large.image, np.ndarray) and not isinstance(large.target, np.ndarray)
    np.testing.assert_array_equal(large.boxes, whole.boxes)
    assert len(whole.boxes) > 5 and large.id == whole.id
    # The last size is larger than the image, which is then continued by reflection.
    for size, seeds in ((8, 12), (40, 12), (130, 5), (260, 3)):
        for seed in range(seeds):
            config = AugmentConfig(noise=0, gamma=0)
            one, other = (
                crop_batch([patch], size, np.random.default_rng(seed), config, objects=True) for patch in (whole, large)
            )
            assert np.array_equal(one.targets, other.targets) and np.array_equal(one.weights, other.weights)
            assert np.array_equal(one.objects, other.objects)
            np.testing.assert_allclose(one.images, other.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_unlabelled_crops_of_a_large_image(tmp_path, monkeypatch, ending):
    data = open_folder(make(tmp_path, ending), "coco")
    whole, large = both(data, unlabelled_loaders, monkeypatch)
    assert not isinstance(large.image, np.ndarray) and not len(large.boxes)
    one, other = (crop_batch([patch], 40, np.random.default_rng(0), AugmentConfig()) for patch in (whole, large))
    np.testing.assert_allclose(one.images, other.images, atol=1e-5, rtol=0)
    assert not other.targets.any() and not other.weights.any()


@pytest.mark.parametrize("radiometry", [Radiometry(policy="percentile"), Radiometry(policy="clahe")])
def test_a_radiometry_that_needs_the_whole_image_reads_it(tmp_path, monkeypatch, radiometry):
    data = open_folder(make(tmp_path, ".tif"), "coco", radiometry=radiometry)
    whole, large = both(data, loaders, monkeypatch)
    np.testing.assert_array_equal(large.image, whole.image)


def test_a_crop_reads_its_window_alone(tmp_path, monkeypatch):
    """After the statistics, nothing of the file and of the labels is decoded but what the crop shows."""
    data = open_folder(make(tmp_path, ".tif"), "coco")
    _, large = both(data, loaders, monkeypatch)
    assert len(large.boxes)
    pixels, decoded, read = [], [], TiffWindows._read
    monkeypatch.setattr(TiffWindows, "_read", lambda self, *window: pixels.append(window[2:]) or read(self, *window))
    monkeypatch.setattr(planes, "decode", lambda code, own=planes.decode: decoded.append(code["size"]) or own(code))
    crop_batch([large], 16, np.random.default_rng(0), AugmentConfig(scale_probability=0), objects=True)
    assert pixels == [(16, 16)]
    assert decoded and all(height <= 16 and width <= 16 for height, width in decoded)


def test_large_images_take_no_room_in_a_cache(tmp_path, monkeypatch):
    data = open_folder(make(tmp_path, ".tif"), "coco")
    monkeypatch.setattr("fewlabel.data.large.HELD", 100)
    opened, own = [], type(data).opened
    monkeypatch.setattr(type(data), "opened", lambda self, id: opened.append(id) or own(self, id))
    pool = PatchPool([(1, loaders(data, ["a", "a", "a"]))], cache=30_000)
    pool.draw(40, np.random.default_rng(0))
    assert len(opened) == 3  # 35,700 pixels each
    held = StoredWindows(next((make_png(tmp_path / "more") / "images").iterdir()), 10**6)
    assert held.nbytes == 2 * SIZE[0] * SIZE[1]


def make_png(root):
    root.mkdir()
    return make(root, ".png")


def test_joined_images_are_read_by_windows_too(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    own, further = make(tmp_path / "own", ".tif"), tmp_path / "further"
    further.mkdir()
    tifffile.imwrite(further / "b.tif", np.arange(4000, dtype=np.uint16).reshape(50, 80))
    data = JoinedDataset(open_folder(own, "coco"), open_folder(further, "plain"))
    assert isinstance(data.opened("a"), Image) and isinstance(data.opened(PREFIX + "b"), Image)
    monkeypatch.setattr("fewlabel.data.large.HELD", 100)
    image = data.opened(PREFIX + "b")
    assert isinstance(image, LargeImage) and image.id == PREFIX + "b" and image.size == (50, 80)
    opened = data.opened("a")
    assert len(data.labels("a", opened).instances) == 25


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    top=st.integers(0, SIZE[0] - 1),
    left=st.integers(0, SIZE[1] - 1),
    sides=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_windows_of_objects_are_those_of_the_masks(seed, top, left, sides):
    rng = np.random.default_rng(seed)
    masks, crowds = drawn(rng, int(rng.integers(0, 12))), drawn(rng, int(rng.integers(0, 3)))
    window = top, left, min(sides[0], SIZE[0] - top), min(sides[1], SIZE[1] - left)
    inside = slice(top, top + window[2]), slice(left, left + window[3])
    expected = np.zeros(SIZE, np.int32)
    for number in sorted(range(len(masks)), key=lambda number: (-masks[number].sum(), number)):
        expected[masks[number]] = number + 1  # the smaller one is seen, of equals the later one
    objects = ObjectPlane(encode_many(masks), SIZE)
    found = objects.window(*window)
    assert found.dtype == np.int32 and objects.shape == SIZE
    np.testing.assert_array_equal(found, expected[inside])
    np.testing.assert_array_equal(TargetPlane(objects).window(*window), masks.any(axis=0)[inside])
    weight = WeightPlane(objects, ObjectPlane(encode_many(crowds), SIZE)).window(*window)
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight == 0, (crowds.any(axis=0) & ~masks.any(axis=0))[inside])


def test_boxes_of_a_data_set_do_not_matter():
    """A box that holds no pixel's middle has a mask of one pixel outside of it."""
    mask = np.zeros((9, 9), bool)
    mask[8, 8] = True
    assert ObjectPlane([encode(mask)], (9, 9)).window(8, 8, 1, 1).tolist() == [[1]]


CHILD = """
import sys
import numpy as np
from fewlabel.data.augment import AugmentConfig, crop_batch
from fewlabel.data.pool import PatchPool, loaders
from fewlabel.data.readers import open_folder

def memory(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) / 1024

data = open_folder(sys.argv[1])
rng, config = np.random.default_rng(0), AugmentConfig()
before = memory("VmRSS")
pool = PatchPool([(1, loaders(data, data.train_ids))])
batches = [crop_batch(pool.draw(8, rng), 256, rng, config, objects=True) for _ in range(20)]
print(memory("VmHWM") - before, sum(int(batch.targets.any((1, 2, 3)).sum()) for batch in batches))
"""


@pytest.mark.slow  # half a minute: writes 10,240 x 10,240 pixels and draws crops of them
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's own books")
@pytest.mark.parametrize(
    ("layout", "ending", "most"), [("coco", ".tif", 200), ("coco", ".png", 400), ("sirst", ".tif", 450)]
)
def test_memory_of_training_on_a_large_image(tmp_path, layout, ending, most):
    """Growth of resident memory in MiB, in a process of its own; as float32 the image alone has 400."""
    side = 10_240
    rng = np.random.default_rng(0)
    block, mask = rng.integers(90, 110, (1024, side)).astype(np.uint8), np.zeros((side, side), np.uint8)
    corners = rng.integers(0, side - 20, (500, 2)).tolist()
    for row, column in corners:
        mask[row : row + 12, column : column + 9] = 255
    pixels = np.tile(block, (10, 1)) + mask // 2
    (tmp_path / "images").mkdir()
    if ending == ".tif":
        tifffile.imwrite(
            tmp_path / "images/a.tif", pixels, tile=(256, 256), compression="zlib", compressionargs={"level": 1}
        )
    else:
        Pillow.fromarray(pixels).save(tmp_path / "images/a.png", compress_level=1)
    if layout == "sirst":
        (tmp_path / "masks").mkdir()
        Pillow.fromarray(mask).save(tmp_path / "masks/a.png", compress_level=1)
    else:
        polygons = [[x, y, x + 9, y, x + 9, y + 12, x, y + 12] for y, x in corners]
        annotations = [
            {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [polygon]}
            for number, polygon in enumerate(polygons)
        ]
        images = [{"id": 1, "file_name": f"a{ending}", "height": side, "width": side}]
        value = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
        (tmp_path / "instances_train.json").write_text(json.dumps(value))
    del pixels, mask
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    growth, shown = done.stdout.split()
    assert int(shown) > 80  # of 160 crops
    assert float(growth) < most
