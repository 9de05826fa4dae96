"""The patch pool: what is drawn, how often files are opened, and what patches hold."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from fewlabel.core.errors import DataError
from fewlabel.core.radiometry import standardise
from fewlabel.core.types import Image, Instances, Labelled
from fewlabel.data.augment import Patch
from fewlabel.data.pool import PatchPool, loaders, patch_of, patch_of_scene, patch_of_unlabelled, unlabelled_loaders
from fewlabel.data.readers.sirst import SirstDataset
from fewlabel.data.synth.infrared import render

PATCH = 36  # bytes of the patches of `Counting`: two planes of float32 and one of bool


class Counting:
    """Loaders of patches that hold their own number, and how often each was called."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.calls: Counter[int] = Counter()
        self.loaders = [lambda number=number: self._load(number) for number in range(first, first + count)]

    def _load(self, number: int) -> Patch:
        self.calls[number] += 1
        plane = np.full((2, 2), number, np.float32)
        return Patch(plane, plane > 0, np.ones_like(plane))


def numbers(patches: list[Patch]) -> list[int]:
    return [int(patch.image[0, 0]) for patch in patches]


def test_groups_are_drawn_by_weight_and_members_uniformly():
    pool = PatchPool([(3, Counting(2).loaders), (1, Counting(50, first=100).loaders), (0, Counting(1, 500).loaders)])
    assert len(pool) == 53
    drawn = numbers(pool.draw(8000, np.random.default_rng(0)))
    assert np.mean(np.array(drawn) < 100) == pytest.approx(0.75, abs=0.02)
    assert np.mean(np.array(drawn) == 0) == pytest.approx(0.375, abs=0.02)
    assert set(drawn) == {0, 1, *range(100, 150)}


def test_draws_depend_on_the_generator_alone():
    warm = PatchPool([(1, Counting(40).loaders)])
    warm.draw(100, np.random.default_rng(9))
    cold = PatchPool([(1, Counting(40).loaders)], cache=1)
    for seed in range(3):
        draws = [numbers(pool.draw(16, np.random.default_rng(seed))) for pool in (warm, cold)]
        assert draws[0] == draws[1]


def test_cache_keeps_the_last_used_and_no_more():
    source = Counting(5)
    pool = PatchPool([(1, source.loaders)], cache=3 * PATCH)
    rng = np.random.default_rng(0)
    recent: list[int] = []
    expected: Counter[int] = Counter()
    for _ in range(200):
        (number,) = numbers(pool.draw(1, rng))
        if number in recent:
            recent.remove(number)
        else:
            expected[number] += 1
        recent = [*recent, number][-3:]
        assert len(pool._cache) <= 3
    assert source.calls == expected


def test_planes_that_repeat_one_number_take_no_room():
    source = Counting(5)
    flat = np.broadcast_to(np.float32(1), (2, 2))
    light = [lambda load=load: replace(load(), weight=flat) for load in source.loaders]
    PatchPool([(1, light)], cache=5 * 20).draw(200, np.random.default_rng(0))
    assert source.calls == Counter(range(5))


def test_whole_set_in_the_cache_is_loaded_once():
    source = Counting(20)
    PatchPool([(1, source.loaders)], cache=20 * PATCH).draw(1000, np.random.default_rng(0))
    assert source.calls == Counter(range(20))


@pytest.mark.parametrize("weights", [(), (0.0,), (-1.0, 2.0), (float("nan"),)])
def test_weights_that_make_no_distribution(weights):
    with pytest.raises(DataError, match="weights of the training groups"):
        PatchPool([(weight, Counting(1).loaders) for weight in weights])


def test_empty_group_must_have_no_weight():
    with pytest.raises(DataError, match="group 1 .* no image"):
        PatchPool([(1, Counting(1).loaders), (1, [])])
    assert len(PatchPool([(1, Counting(1).loaders), (0, [])]).draw(3, np.random.default_rng(0))) == 3


def test_patch_of_a_labelled_image():
    rng = np.random.default_rng(0)
    pixels = (rng.random((3, 12, 17)) * 4000).astype(np.float32)
    mask = rng.random((12, 17)) < 0.1
    image = Image("a", pixels, "uint16", 16)
    patch = patch_of(Labelled(image, Instances.from_semantic(mask)))
    np.testing.assert_array_equal(patch.image, standardise(image.grey()))
    np.testing.assert_array_equal(patch.target, mask)
    assert patch.image.dtype == patch.weight.dtype == np.float32 and patch.target.dtype == bool
    assert patch.weight.shape == (12, 17) and (patch.weight == 1).all()
    assert patch.id == "a"
    blank = patch_of_unlabelled(image)
    np.testing.assert_array_equal(blank.image, patch.image)
    assert blank.id == "a" and blank.target.dtype == bool and blank.weight.dtype == np.float32
    assert blank.target.shape == blank.weight.shape == (12, 17)
    assert not blank.target.any() and not blank.weight.any() and not len(blank.boxes)


def test_patch_of_a_rendered_scene():
    scene = render(np.random.default_rng(0), size=64)
    patch = patch_of_scene(scene)
    np.testing.assert_array_equal(patch.target, scene.labels > 0)
    assert patch.image.shape == (64, 64) and abs(float(patch.image.mean())) < 1e-3
    assert float(patch.image.std()) == pytest.approx(1, abs=1e-3)


def test_loaders_open_files_only_when_drawn(real_data):
    data = SirstDataset(real_data / "NUAA-SIRST")
    sources = [*loaders(data, data.train_ids[:3]), *loaders(data, ["no such image"])]
    patch = sources[1]()
    sample = data.labelled(data.train_ids[1])
    np.testing.assert_array_equal(patch.target, sample.instances.semantic())
    assert patch.id == data.train_ids[1]
    with pytest.raises(DataError, match="no such image"):
        sources[3]()


def test_unlabelled_loaders_do_not_open_masks(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Pillow.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "images/a.png")
    (tmp_path / "masks/a.png").write_text("no mask at all")
    data = SirstDataset(tmp_path)
    with pytest.raises(DataError, match="masks"):
        loaders(data, ["a"])[0]()
    patch = unlabelled_loaders(data, ["a"])[0]()
    assert patch.id == "a" and patch.image.std() > 0 and not patch.target.any()


def test_ignored_regions_do_not_count_but_objects_in_them_do():
    target, crowd = np.zeros((2, 6, 7), bool)
    target[1:3, 1:3] = True
    crowd[2:5, 2:6] = True
    image = Image("a", np.arange(42, dtype=np.float32).reshape(1, 6, 7))
    labels = Instances.from_masks(target[None]), Instances.from_masks(crowd[None])
    patch = patch_of(Labelled(image, *labels))
    np.testing.assert_array_equal(patch.weight == 0, crowd & ~target)
    assert (patch_of(Labelled(image, labels[0])).weight == 1).all()
    assert (patch_of(Labelled(image, labels[0], Instances((6, 7)))).weight == 1).all()
