import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.data.synth.objects import STYLES, ObjectsConfig, render
from fewlabel.data.synth.shapes import OUTLINES, outline


def rng(*seed):
    return np.random.default_rng(list(seed))


def only(style, **options):
    return ObjectsConfig(styles=tuple(float(s == style) for s in STYLES), **options)


def test_same_generator_state_gives_the_same_bits():
    first, second, other = render(rng(5), 64), render(rng(5), 64), render(rng(6), 64)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert not np.array_equal(first.pixels, other.pixels)


@settings(max_examples=25, deadline=None)
@given(st.integers(16, 100), st.integers(16, 100), st.integers(0, 2**31))
def test_any_size_gives_rgb_bytes_and_gapless_labels(height, width, seed):
    scene = render(rng(seed), (height, width))
    assert scene.pixels.shape == (3, height, width) and scene.pixels.dtype == np.uint8
    assert scene.pixels.flags.c_contiguous and scene.pixels.flags.writeable
    assert scene.labels.shape == (height, width) and scene.labels.dtype == np.int32
    numbers = np.unique(scene.labels)
    assert set(numbers) - {0} == set(range(1, numbers.max() + 1))


@pytest.mark.parametrize("style", STYLES)
def test_every_style_renders_and_keeps_the_least_area(style):
    found = 0
    for k in range(8):
        scene = render(rng(k), (90, 110), only(style))
        assert scene.style == style
        areas = np.bincount(scene.labels.ravel())[1:]
        assert (areas >= ObjectsConfig().least_area).all()
        found += len(areas)
    assert found > 8


def test_all_styles_are_drawn_by_default():
    assert {render(rng(3, k), 32).style for k in range(80)} == set(STYLES)


def test_the_number_of_objects_is_bounded_and_reaches_many():
    counts = [render(rng(1, k), 128, only("generic")).labels.max() for k in range(60)]
    assert max(counts) <= 15 and max(counts) >= 9
    cells = [render(rng(1, k), 192, only("fluorescence")).labels.max() for k in range(25)]
    assert max(cells) > 30


def test_nuclei_glow_and_stained_nuclei_absorb():
    for style, sign in (("fluorescence", 1), ("stained", -1)):
        contrasts = []
        for k in range(12):
            scene = render(rng(2, k), 128, only(style))
            inside = scene.labels > 0
            if inside.any() and not inside.all():
                grey = scene.pixels.mean(axis=0)
                contrasts.append(sign * (grey[inside].mean() - grey[~inside].mean()))
        assert np.mean(np.array(contrasts) > 2) > 0.8


def test_objects_stand_out_from_the_ground():
    """Nearly all generic objects differ from the ground by more than 5 grey levels in some channel."""
    visible = []
    for k in range(25):
        scene = render(rng(4, k), 128, only("generic"))
        pixels = scene.pixels.astype(float)
        for number in range(1, scene.labels.max() + 1):
            inside, ground = scene.labels == number, scene.labels == 0
            visible.append(np.abs(pixels[:, inside].mean(1) - pixels[:, ground].mean(1)).max() > 5)
    assert np.mean(visible) > 0.85


@pytest.mark.parametrize("kind", OUTLINES)
@pytest.mark.parametrize("radius", [4.0, 17.5, 40.0])
def test_outlines_fit_their_patch(kind, radius):
    for k in range(6):
        level = outline(rng(k), kind, radius)
        inside = level <= 1
        assert level.dtype == np.float32 and np.isfinite(level).all()
        assert inside.any() and inside.mean() < 0.9
        if kind != "noise":
            assert not (inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())


def test_an_ellipse_has_the_area_of_an_ellipse():
    level = outline(rng(0), "ellipse", 30.0)
    inside = level <= 1
    y, x = np.nonzero(inside)
    short, long = np.sqrt(4 * np.linalg.eigvalsh(np.cov(y, x)))  # semi-axes of a uniform ellipse: 2 sqrt(variance)
    assert long == pytest.approx(30, rel=0.03)
    assert inside.sum() == pytest.approx(np.pi * long * short, rel=0.03)


def test_too_small_a_scene_is_refused_in_one_sentence():
    with pytest.raises(DataError, match="at least 16x16"):
        render(rng(0), 12)
