import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.data.synth.objects import MOST_OF_WHOLE, ObjectsConfig, catalogue_for, number_visible, render
from fewlabel.data.synth.objects_kinds import STYLES
from fewlabel.data.synth.objects_paint import Sheet
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
    assert set(np.unique(scene.labels)) - {0} == set(range(1, len(scene.classes) + 1))
    assert set(np.unique(scene.parts)) - {0} == set(range(1, len(scene.wholes) + 1))
    kinds = len(scene.catalogue.kinds)
    assert 3 <= kinds <= 10
    assert scene.classes.dtype == np.int64 and ((scene.classes >= 0) & (scene.classes < kinds)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_parts_lie_inside_their_wholes_and_leave_something_of_them(seed):
    scene = render(rng(seed), 96, ObjectsConfig(parts=1.0))
    for number, whole in enumerate(scene.wholes, 1):
        part = scene.parts == number
        assert (scene.labels[part] == whole).all()
        assert ObjectsConfig().least_area <= part.sum() <= MOST_OF_WHOLE * (scene.labels == whole).sum()
        assert scene.catalogue.kinds[scene.classes[whole - 1]].part is not None


def test_parts_are_common_and_seen():
    """Most parts differ from the rest of their wholes by more than 5 grey levels in some channel."""
    visible = []
    for k in range(25):
        scene = render(rng(9, k), 128, ObjectsConfig(parts=1.0))
        pixels = scene.pixels.astype(float)
        for number, whole in enumerate(scene.wholes, 1):
            part = scene.parts == number
            rest = (scene.labels == whole) & ~part
            visible.append(np.abs(pixels[:, part].mean(1) - pixels[:, rest].mean(1)).max() > 5)
    assert len(visible) > 50
    assert np.mean(visible) > 0.8
    assert all(len(render(rng(9, k), 64, ObjectsConfig(parts=0.0)).wholes) == 0 for k in range(5))


def test_objects_of_a_catalogue_have_its_classes_and_style():
    catalogue = catalogue_for(rng(1), "stained", ObjectsConfig(), classes=4)
    seen = set()
    for k in range(15):
        scene = render(rng(2, k), 96, catalogue=catalogue)
        assert scene.catalogue == catalogue and scene.style == "stained"
        seen |= set(scene.classes.tolist())
    assert seen == set(range(4))


def test_hidden_objects_and_parts_lose_their_numbers():
    """Against a plain loop: an object that is covered, a part of it, and a part that is nearly all of its whole."""
    sheet = Sheet.blank((20, 20))
    square = np.ones((10, 10), bool)
    half = square.copy()
    half[5:] = False
    everything = square.copy()
    everything[0, :5] = False
    sheet.add((slice(0, 10), slice(0, 10)), square, 7, half)  # object 1 with part 1: hidden by object 2
    sheet.add((slice(0, 10), slice(0, 10)), square, 5, everything)  # object 2 with part 2: 95 of 100 pixels
    sheet.add((slice(10, 20), slice(10, 20)), square, 3, half)  # object 3 with part 3
    labels, classes, parts, wholes = number_visible(sheet, 12)
    assert classes.tolist() == [5, 3] and wholes.tolist() == [2]
    assert (labels == 1).sum() == 100 and labels[15, 15] == 2
    assert (parts == 1).sum() == 50 and parts.max() == 1
    assert np.array_equal(parts == 1, (sheet.parts == 3))


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
