"""A router's gates of a whole image: the adapter's own figures for one tile, and a partition of one for many."""

import numpy as np
import pytest

from fewlabel.data.tiles import TILE
from fewlabel.pipeline.gates import image_gates
from fewlabel.scalpel.adapter import AdapterConfig
from fewlabel.scalpel.teacher import ScalpelTeacher, TeacherConfig


def teacher_with(adapter: AdapterConfig | None, **changes: object) -> ScalpelTeacher:
    """An untrained teacher on nano-SAM."""
    return ScalpelTeacher(TeacherConfig(adapter=adapter, **changes)).eval()


def picture(height: int, width: int) -> np.ndarray:
    """A standardised image of noise and a bright spot."""
    image = np.random.default_rng(0).normal(size=(height, width))
    image[3:6, 4:8] += 9
    return ((image - image.mean()) / image.std()).astype(np.float32)


@pytest.fixture(scope="module")
def random_gates() -> ScalpelTeacher:
    """A teacher whose gates differ between images and tokens without training."""
    return teacher_with(AdapterConfig(gate="random"))


def test_gates_of_one_tile_are_those_of_the_adapter(random_gates: ScalpelTeacher) -> None:
    found = image_gates(random_gates, picture(TILE, TILE))
    own = random_gates.adapter.gates
    assert [level.level for level in found] == [str(level) for level in own]
    for level, (of_image, final) in zip(found, own.values(), strict=True):
        np.testing.assert_allclose(level.image, of_image[0], rtol=1e-6)
        assert level.tokens.shape == (4, TILE, TILE) and level.tokens.std(axis=(1, 2)).min() > 0
        np.testing.assert_allclose(level.tokens.mean(axis=(1, 2)), final[0], rtol=1e-5)


@pytest.mark.parametrize("size", [(TILE + 40, TILE - 30), (60, 50)])
def test_gates_of_any_image_sum_to_one_everywhere(random_gates: ScalpelTeacher, size: tuple[int, int]) -> None:
    for level in image_gates(random_gates, picture(*size)):
        assert sum(level.image) == pytest.approx(1)
        assert level.tokens.shape == (4, *size)
        np.testing.assert_allclose(level.tokens.sum(axis=0), 1, rtol=1e-5)


def test_the_map_shows_a_token_where_it_is(random_gates: ScalpelTeacher) -> None:
    """The spot in the corner changes the gates there more than far away."""
    image = picture(TILE, TILE)
    plain = image.copy()
    plain[:9, :9] = np.random.default_rng(1).normal(size=(9, 9))
    first, second = (image_gates(random_gates, one)[0].tokens for one in (image, plain))
    change = np.abs(first - second).sum(axis=0)
    assert change[:8, :8].mean() > 5 * change[64:, 64:].mean()


def test_shared_and_even_routers() -> None:
    shared = image_gates(teacher_with(AdapterConfig(gate="random", by_depth=False)), picture(60, 50))
    assert len(shared) > 1 and len({level.image for level in shared}) == len(shared)
    for level in image_gates(teacher_with(AdapterConfig()), picture(60, 50)):  # untrained: no choice yet
        assert level.image == pytest.approx((0.25,) * 4) and level.tokens is None
    three = teacher_with(AdapterConfig(gate="random"), operators=("ring_top_hat", "blob_response", "patch_contrast"))
    assert all(len(level.image) == 3 for level in image_gates(three, picture(60, 50)))


def test_teachers_without_router_or_with_gates_of_images_alone() -> None:
    image = picture(60, 50)
    assert image_gates(teacher_with(None), image) == []
    assert image_gates(teacher_with(AdapterConfig(kind="lora")), image) == []
    conv = image_gates(teacher_with(AdapterConfig(kind="conv-lora", gate="random")), image)
    assert conv and all(level.tokens is None and sum(level.image) == pytest.approx(1) for level in conv)
    assert all(len(level.image) == 3 for level in conv)
