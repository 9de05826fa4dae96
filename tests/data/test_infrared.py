import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewlabel.core.errors import DataError
from fewlabel.data.synth import detector
from fewlabel.data.synth.backgrounds import KINDS
from fewlabel.data.synth.distractors import add_distractors
from fewlabel.data.synth.infrared import ODDS, InfraredConfig, render
from fewlabel.data.synth.targets import SHAPES, draw_parts, draw_target, render_target, target_mask

EIGHT = np.ones((3, 3))


def rng(*seed):
    return np.random.default_rng(list(seed))


@pytest.fixture(scope="module")
def scenes():
    return [render(rng(1, k), (96, 112)) for k in range(150)]


def test_same_generator_state_gives_the_same_bits():
    first, second, other = render(rng(5), 64), render(rng(5), 64), render(rng(6), 64)
    np.testing.assert_array_equal(first.radiance, second.radiance)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert not np.array_equal(first.radiance, other.radiance)


def test_the_order_of_calls_does_not_matter():
    alone = render(rng(9), (70, 51))
    render(rng(1), 33)
    render(rng(2), (51, 70))
    np.testing.assert_array_equal(render(rng(9), (70, 51)).radiance, alone.radiance)


@settings(max_examples=25, deadline=None)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 2**31))
def test_any_size_gives_14_bit_counts_and_consistent_labels(height, width, seed):
    scene = render(rng(seed), (height, width))
    assert scene.radiance.shape == scene.labels.shape == (height, width)
    assert scene.radiance.dtype == np.uint16 and scene.labels.dtype == np.int32
    assert scene.radiance.max() <= detector.FULL_SCALE
    assert sorted(set(np.unique(scene.labels)) - {0}) == list(range(1, len(scene.snr) + 1))


def test_each_target_is_one_component_apart_from_the_others(scenes):
    for scene in scenes:
        _, found = ndimage.label(scene.labels > 0, EIGHT)
        assert found == scene.labels.max()
        for number in range(1, found + 1):
            assert ndimage.label(scene.labels == number, EIGHT)[1] == 1


def test_areas_and_counts_follow_the_config(scenes):
    config = InfraredConfig()
    areas = np.concatenate([np.bincount(s.labels.ravel())[1:] for s in scenes])
    assert areas.min() >= config.area[0] and areas.max() <= config.area[1]
    assert 10 <= np.median(areas) <= 35
    numbers = np.array([s.labels.max() for s in scenes])
    assert numbers.min() == 0 and numbers.max() < len(config.counts)
    assert (numbers == 1).mean() > 0.5


@pytest.mark.parametrize("limits", [(1, 9), (1, 1), (30, 40), (4, 60)])
def test_tight_area_limits_hold(limits):
    config = InfraredConfig(area=limits, area_median=float(np.mean(limits)), counts=(0, 0.5, 0.5))
    areas = np.concatenate([np.bincount(render(rng(3, k), 64, config).labels.ravel())[1:] for k in range(40)])
    assert len(areas) >= 20
    assert areas.min() >= limits[0] and areas.max() <= limits[1]


def test_a_config_without_targets_gives_empty_scenes():
    config = InfraredConfig(counts=(1.0,))
    for k in range(5):
        scene = render(rng(k), 48, config)
        assert not scene.labels.any() and scene.snr.size == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_background_kind_renders_within_range_and_varies(kind):
    field = KINDS[kind](rng(4), (61, 83))
    assert field.shape == (61, 83) and field.dtype == np.float32
    assert np.isfinite(field).all() and field.std() > 0
    scene = render(rng(8), (61, 83), InfraredConfig(kinds={kind: 1.0}))
    assert scene.kind == kind


def test_all_kinds_are_drawn_by_default(scenes):
    assert set(ODDS) == set(KINDS)
    assert {s.kind for s in scenes} == set(KINDS)


def test_measured_signal_to_noise_matches_the_recorded_one():
    """Flat sky, no camera processing: the target's peak over the noise is what the scene records."""
    config = InfraredConfig(
        kinds={"clear_sky": 1.0}, counts=(0.0, 1.0), sharpening=0, eight_bit=0, bad_pixels=0, distractors=0, stripes=0,
        read_noise=(0.004, 0.004), shot_noise=(0.0001, 0.0001), snr=(10.0, 20.0), contrast=(0.01, 0.9), area=(4, 60),
    )  # fmt: skip
    ratios = []
    for k in range(60):
        scene = render(rng(2, k), 96, config)
        if not scene.snr.size:
            continue
        assert config.snr[0] <= scene.snr[0] <= config.snr[1]
        y, x = (int(round(c)) for c in ndimage.center_of_mass(scene.labels))
        top, left = max(0, y - 14), max(0, x - 14)
        window = scene.radiance[top : y + 15, left : x + 15].astype(float)
        inside = scene.labels[top : y + 15, left : x + 15] > 0
        ground = ~ndimage.binary_dilation(inside, iterations=4)
        ratio = (window[inside].max() - window[ground].mean()) / window[ground].std()
        ratios.append(ratio / scene.snr[0])
    assert len(ratios) > 45
    assert 0.85 < np.median(ratios) < 1.25


def test_recorded_ratios_stay_in_the_configured_range(scenes):
    low, high = InfraredConfig().snr
    ratios = np.concatenate([s.snr for s in scenes])
    assert ratios.min() >= low and ratios.max() <= high


def test_targets_are_brighter_than_their_surroundings(scenes):
    brighter = []
    for scene in scenes:
        for number in range(1, scene.labels.max() + 1):
            inside = scene.labels == number
            ring = ndimage.binary_dilation(inside, EIGHT, 5) & ~ndimage.binary_dilation(scene.labels > 0, EIGHT, 2)
            brighter.append(scene.radiance[inside].mean() > scene.radiance[ring].mean())
    assert np.mean(brighter) > 0.95


def test_distractors_change_the_picture_but_carry_no_label():
    plain = np.full((64, 64), 0.3, np.float32)
    for k in range(20):
        busy = plain.copy()
        add_distractors(rng(k), busy, 0.05)
        assert np.abs(busy - plain).max() > 0.01
    config = InfraredConfig(counts=(1.0,), distractors=1.0, bad_pixels=1.0)
    assert not any(render(rng(k), 64, config).labels.any() for k in range(10))


@pytest.mark.parametrize("size", [8, (16, 15), (0, 40)])
def test_too_small_a_scene_is_refused_in_one_sentence(size):
    with pytest.raises(DataError, match="at least 16x16"):
        render(rng(0), size)


def test_an_unknown_background_is_refused():
    with pytest.raises(ValueError, match="'moon'"):
        InfraredConfig(kinds={"moon": 1.0})


@pytest.mark.parametrize(
    "options", [{"snr": (5.0, 2.0)}, {"psf": (0.0, 1.0)}, {"counts": (0.0,)}, {"counts": (-1.0, 2.0)}, {"kinds": {}}]
)
def test_impossible_ranges_are_refused(options):
    with pytest.raises(ValueError, match="needs"):
        InfraredConfig(**options)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_target_shape_respects_its_limits(shape):
    for k in range(15):
        signal, mask = draw_target(rng(7, k), shape, 20.0, 0.8, 0.4, (1, 40))
        assert 1 <= mask.sum() <= 40
        assert signal.max() == pytest.approx(1, abs=1e-6) and signal.min() >= 0
        assert mask.flat[signal.argmax()] and ndimage.label(mask, EIGHT)[1] == 1
        assert signal[mask].min() >= 0.4
        border = np.concatenate([signal[0], signal[-1], signal[:, 0], signal[:, -1]])
        assert border.max() < 0.12


def test_a_point_target_is_the_point_spread_itself():
    """Oracle: an explicit Gaussian of the point spread's deviation at the sub-pixel centre."""
    signal = render_target(draw_parts(rng(0), "point"), 0.1, 1.3, (10.3, 9.6), (21, 21), 0.0)
    y, x = np.mgrid[:21, :21]
    expected = np.exp(-0.5 * ((y - 10.3) ** 2 + (x - 9.6) ** 2) / 1.3**2)
    np.testing.assert_allclose(signal, expected / expected.max(), atol=2e-4)


def test_an_extended_target_equals_its_sharp_shape_convolved_with_the_point_spread():
    parts = draw_parts(rng(3), "aircraft")
    sharp = render_target(parts, 5.0, 1e-6, (40.0, 40.0), (81, 81), 0.0)
    blurred = ndimage.gaussian_filter(sharp.astype(float), 2.0, truncate=6)
    seen = render_target(parts, 5.0, 2.0, (40.0, 40.0), (81, 81), 0.0)
    np.testing.assert_allclose(seen, blurred / blurred.max(), atol=0.01)


def test_the_mask_is_the_level_set_around_the_peak_only():
    signal = np.zeros((9, 9), np.float32)
    signal[2, 2], signal[2, 3], signal[7, 7], signal[3, 4] = 1.0, 0.5, 0.9, 0.39
    mask = target_mask(signal, 0.4)
    assert {tuple(p) for p in np.argwhere(mask)} == {(2, 2), (2, 3)}


def test_noise_variance_grows_with_the_signal_like_photons():
    radiance = np.repeat(np.array([[0.0], [0.5], [1.0]], np.float32), 4000, axis=1)
    noise = detector.temporal_noise(rng(0), detector.noise_sigma(radiance, 0.02, 0.01), (0, 0))
    np.testing.assert_allclose(noise.var(axis=1), [1e-4, 3e-4, 5e-4], rtol=0.1)


def test_smeared_noise_keeps_its_deviation():
    noise = detector.temporal_noise(rng(0), np.full((80, 80), 0.02, np.float32), (1.0, 2.0))
    assert noise.std() == pytest.approx(0.02, rel=1e-3)
    assert np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1] > 0.7


def test_bad_pixels_never_hit_a_target():
    counts = np.full((16, 16), 0.5, np.float32)
    avoid = np.zeros((16, 16), bool)
    avoid[:, :8] = True
    detector.bad_pixels(rng(0), counts, 200, 200, avoid)
    assert (counts[:, :8] == 0.5).all() and (counts[:, 8:] != 0.5).any()


def test_the_converter_keeps_the_number_of_levels():
    ramp = np.linspace(-0.1, 1.1, 5000, dtype=np.float32)[None]
    for bits in (8, 14):
        counts = detector.quantise(ramp, bits)
        assert counts.min() == 0 and counts.max() == 16383
        assert len(np.unique(counts)) == min(2**bits, len(np.unique(counts)))
    assert len(np.unique(detector.quantise(ramp, 8))) == 256
