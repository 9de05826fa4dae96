"""Classes of objects: told apart by their looks, consistent within a data set."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import DataError
from fewlabel.data.synth.objects_kinds import (
    CELL_OUTLINES,
    COLOURS,
    PART_CONTRAST,
    PARTS,
    STYLES,
    TEXTURES,
    draw_catalogue,
    family_colour,
    part_of,
    pattern,
)
from fewlabel.data.synth.shapes import OUTLINES, outline


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(STYLES), st.integers(1, 20))
def test_no_two_classes_look_alike(seed, style, classes):
    catalogue = draw_catalogue(np.random.default_rng(seed), style, classes, (4.0, 40.0), 0.5)
    assert catalogue == draw_catalogue(np.random.default_rng(seed), style, classes, (4.0, 40.0), 0.5)
    assert catalogue.style == style and len(catalogue.kinds) == classes
    assert len({kind.name for kind in catalogue.kinds}) == classes
    for kind in catalogue.kinds:
        assert kind.outline in (OUTLINES if style == "generic" else CELL_OUTLINES)
        assert 4.0 <= kind.radius[0] <= kind.radius[1] <= 40.0 and kind.radius[1] <= 2 * kind.radius[0]
        assert abs(sum(kind.part_colour) - sum(kind.colour)) >= 3 * PART_CONTRAST - 1e-9
        assert kind.part is None or kind.part in PARTS


def test_colours_keep_to_their_family():
    rng = np.random.default_rng(0)
    for family, name in enumerate(COLOURS):
        for _ in range(50):
            colour = family_colour(rng, family)
            assert all(0 <= v <= 1 for v in colour)
            hue, saturation, value = colorsys.rgb_to_hsv(*colour)
            if name in ("pale", "dark"):
                assert saturation <= 0.13 and (value >= 0.7) == (name == "pale")
            else:
                distance = abs(hue - family / 8)
                assert min(distance, 1 - distance) <= 0.36 / 8


@pytest.mark.parametrize("texture", TEXTURES)
def test_patterns_are_as_strong_as_their_class_says(texture):
    rng = np.random.default_rng(3)
    kinds = [k for s in range(200) for k in draw_catalogue(np.random.default_rng(s), "generic", 5, (4.0, 9.0), 0).kinds]
    kind = next(k for k in kinds if k.texture == texture)
    grain = rng.standard_normal((40, 50), dtype=np.float32)
    field = pattern(rng, kind, grain)
    assert field.shape == (40, 50) and field.dtype == np.float32
    if texture == "plain":
        assert not field.any()
    elif texture == "grain":
        assert np.allclose(field, kind.strength * grain)
    else:
        assert np.abs(field).max() == pytest.approx(kind.strength, rel=1e-5)
        assert field.std() > 0.3 * kind.strength


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(PARTS), st.sampled_from(OUTLINES), st.floats(3.0, 40.0))
def test_a_part_is_a_subset_of_its_whole(seed, part, shape, radius):
    rng = np.random.default_rng(seed)
    level = outline(rng, shape, radius)
    mask = part_of(rng, part, level, outline(rng, "nucleus", radius * 0.6))
    assert mask.dtype == bool and mask.shape == level.shape
    assert not (mask & ~(level <= 1)).any()


@pytest.mark.parametrize(("style", "classes"), [("oil", 3), ("generic", 0), ("stained", 21)])
def test_impossible_catalogues_are_refused(style, classes):
    with pytest.raises(DataError, match="choose 1 to 20 classes"):
        draw_catalogue(np.random.default_rng(0), style, classes, (4.0, 9.0), 0.0)
