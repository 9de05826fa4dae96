"""Infrared scenes with small targets and exact masks, rendered from a seeded sensor model. No real pixel enters.

    radiance  = background(kind) ∗ point spread + distractors + Σ amplitude · target ∗ point spread
    counts    = quantise( sharpen( radiance + fixed pattern + noise(read, photon) ) )
    amplitude = SNR · sqrt( local clutter variance + noise variance )

A target's mask holds the pixels where its own noise-free signal is at least `mask_level` of its peak.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fewlabel.core.errors import DataError
from fewlabel.core.masks import components
from fewlabel.data.synth import detector
from fewlabel.data.synth.backgrounds import KINDS
from fewlabel.data.synth.distractors import add_distractors
from fewlabel.data.synth.fields import Array, blur, log_uniform
from fewlabel.data.synth.targets import SHAPES, draw_area, draw_target

ODDS = {
    "clear_sky": 0.28,
    "stratus": 0.22,
    "cumulus": 0.2,
    "terrain": 0.1,
    "sea": 0.06,
    "buildings": 0.05,
    "mixture": 0.05,
    "fields": 0.04,
}
"""Default share of each background kind."""

SNR_TILT = 0.7
"""Exponent on the uniform variate of the log-uniform ratio; below 1, bright targets are more frequent."""

WINDOW = 12
"""Half side in pixels of the square around a target in which the local clutter is measured."""


class InfraredConfig(BaseModel):
    """What the renderer draws from. Pairs are inclusive ranges; intensities are fractions of the 14-bit full scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: dict[str, float] = Field(default=ODDS, description="relative probability of each background kind")
    counts: tuple[float, ...] = Field(
        default=(0.07, 0.69, 0.14, 0.05, 0.03, 0.02), description="probability of 0, 1, 2, ... targets in an image"
    )
    area: tuple[int, int] = Field(default=(1, 200), description="least and most mask pixels of one target")
    area_median: float = Field(default=23.0, gt=0, description="median of the log-normal target area in pixels")
    area_spread: float = Field(default=0.8, ge=0, description="standard deviation of the logarithm of the area")
    psf: tuple[float, float] = Field(
        default=(0.5, 1.2), description="standard deviation of the optical point spread in pixels"
    )
    mask_level: float = Field(
        default=0.4, gt=0, lt=1, description="share of the target's peak that a mask pixel reaches"
    )
    snr: tuple[float, float] = Field(default=(3.0, 120.0), description="target peak over local clutter and noise")
    contrast: tuple[float, float] = Field(
        default=(0.05, 0.95), description="target peak; narrows the SNR range where needed"
    )
    read_noise: tuple[float, float] = Field(default=(0.0003, 0.008), description="read noise, log-uniform")
    shot_noise: tuple[float, float] = Field(
        default=(0.0003, 0.004), description="photon noise at full scale, log-uniform"
    )
    stripes: float = Field(default=0.5, ge=0, description="most fixed-pattern deviation in units of the read noise")
    bad_pixels: float = Field(default=0.15, ge=0, le=1, description="probability that an image has hot and dead pixels")
    distractors: float = Field(default=0.25, ge=0, le=1, description="probability that target-like clutter is drawn")
    sharpening: float = Field(
        default=0.35, ge=0, le=1, description="probability of camera detail enhancement (dark halos)"
    )
    eight_bit: float = Field(default=0.5, ge=0, le=1, description="probability that the camera keeps 256 levels only")

    @field_validator("area", "psf", "snr", "contrast", "read_noise", "shot_noise")
    @classmethod
    def _ordered(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 < pair[0] <= pair[1]:
            raise ValueError(f"a range needs 0 < low <= high; got {pair}")
        return pair

    @field_validator("counts")
    @classmethod
    def _odds(cls, counts: tuple[float, ...]) -> tuple[float, ...]:
        if min(counts, default=0) < 0 or sum(counts) <= 0:
            raise ValueError(f"counts needs non-negative odds with one above 0; got {counts}")
        return counts

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or min(kinds.values(), default=0) < 0 or sum(kinds.values()) <= 0:
            raise ValueError(
                f"kinds needs non-negative odds of {', '.join(KINDS)}, one above 0; got {unknown or kinds}"
            )
        return kinds


@dataclass(frozen=True)
class Scene:
    """One rendered image.

    Attributes:
        radiance: uint16 (H, W), counts 0 to 16383.
        labels: int32 (H, W), 0 = background, 1..N = targets, each one 8-connected and apart from the others.
        kind: name of the background.
        snr: float32 (N,), peak signal of each target over local clutter and noise, before sharpening and quantising.
    """

    radiance: NDArray[np.uint16]
    labels: NDArray[np.int32]
    kind: str
    snr: NDArray[np.float32]


def render(
    rng: np.random.Generator, size: tuple[int, int] | int = (256, 256), config: InfraredConfig | None = None
) -> Scene:
    """Render one scene. The same generator state, size and config give the same bits.

    Args:
        rng: source of all randomness.
        size: (height, width) or one side, in pixels, at least 16.
        config: ranges; the defaults imitate published single-frame infrared sets.

    Raises:
        DataError: a side is below 16 px.
    """
    config = config or InfraredConfig()
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(shape) < 16:
        raise DataError(f"An infrared scene of {shape[0]}x{shape[1]} px was asked for; use at least 16x16.")
    odds = np.array(list(config.kinds.values()))
    kind = list(config.kinds)[int(rng.choice(odds.size, p=odds / odds.sum()))]
    psf = float(rng.uniform(*config.psf))
    read, shot = log_uniform(rng, *config.read_noise), log_uniform(rng, *config.shot_noise)
    scene = _expose(rng, KINDS[kind](rng, shape))
    if rng.random() < config.distractors:
        add_distractors(rng, scene, float(np.hypot(read, 0.3 * scene.std())))
    scene = np.clip(blur(scene, psf), 0, 1)
    labels, snr = _place(rng, scene, psf, read, shot, config)
    return Scene(_sense(rng, scene, labels > 0, read, shot, config), labels, kind, snr)


def _expose(rng: np.random.Generator, scene: Array) -> Array:
    """Choose gain and offset: most exposures fit the range, some saturate the hottest clouds or crush the sky to 0."""
    low, high = (float(v) for v in np.percentile(scene[::4, ::4], (1, 99)))
    if rng.random() < 0.7:
        return scene
    span = max(high - low, 1e-3)
    gain = min(rng.uniform(0.5, 1.3) / span, 4.0)
    return ((scene - np.float32((low + high) / 2)) * np.float32(gain) + np.float32(rng.uniform(0.25, 0.65))).astype(
        np.float32
    )


def _place(
    rng: np.random.Generator, scene: Array, psf: float, read: float, shot: float, config: InfraredConfig
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Add the targets to `scene` in place; returns the labels (H, W) and the signal-to-noise ratio of each."""
    height, width = scene.shape
    labels = np.zeros(scene.shape, np.int32)
    ratios: list[float] = []
    wanted = int(rng.choice(len(config.counts), p=np.asarray(config.counts) / np.sum(config.counts)))
    near: tuple[int, int] | None = None
    background = scene.copy()
    for _ in range(wanted):
        area = draw_area(rng, config.area_median, config.area_spread, config.area)
        shape = SHAPES[int(rng.choice(len(SHAPES), p=_shape_odds(area)))]
        signal, mask = draw_target(rng, shape, area, psf, config.mask_level, config.area)
        for _attempt in range(12):
            cy, cx = int(rng.integers(2, height - 2)), int(rng.integers(2, width - 2))
            if near and _attempt < 3 and rng.random() < 0.4:
                cy = int(np.clip(near[0] + rng.integers(-16, 17), 2, height - 3))
                cx = int(np.clip(near[1] + rng.integers(-16, 17), 2, width - 3))
            window = background[max(0, cy - WINDOW) : cy + WINDOW + 1, max(0, cx - WINDOW) : cx + WINDOW + 1]
            noise = float(read**2 + shot**2 * window.mean())
            unit = float(np.sqrt(window.var() + noise))
            low = max(config.snr[0], config.contrast[0] / unit)
            high = min(config.snr[1], min(config.contrast[1], 1 - background[cy, cx]) / unit)
            if low > high:
                continue
            snr = low * (high / low) ** float(rng.random() ** SNR_TILT)
            amplitude = np.float32(snr * unit)
            if _stamp(scene, labels, signal * amplitude, mask, (cy, cx), len(ratios) + 1, config.area):
                ratios.append(snr)
                near = (cy, cx)
                break
    return labels, np.array(ratios, np.float32)


def _shape_odds(area: float) -> tuple[float, ...]:
    """Probability of each of SHAPES: tiny targets are points, large ones have a visible form."""
    if area < 8:
        return (0.6, 0.2, 0.2, 0.0, 0.0, 0.0)
    if area < 25:
        return (0.2, 0.4, 0.25, 0.05, 0.05, 0.05)
    return (0.05, 0.3, 0.2, 0.1, 0.2, 0.15)


def _stamp(
    scene: Array,
    labels: NDArray[np.int32],
    signal: Array,
    mask: NDArray[np.bool_],
    centre: tuple[int, int],
    number: int,
    limits: tuple[int, int],
) -> bool:
    """Add one target patch centred at `centre` to scene and labels in place.

    False, and nothing added, where the visible mask is not within `limits` pixels, in one piece and with the peak in
    the picture, or would touch another target.
    """
    half = signal.shape[0] // 2
    y0, x0 = centre[0] - half, centre[1] - half
    top, left = max(0, -y0), max(0, -x0)
    bottom, right = min(signal.shape[0], scene.shape[0] - y0), min(signal.shape[1], scene.shape[1] - x0)
    inside = mask[top:bottom, left:right]
    whole, seen = int(mask.sum()), int(inside.sum())
    if not limits[0] <= seen <= limits[1]:
        return False
    if seen < whole and (components(inside)[1] != 1 or signal[top:bottom, left:right].max() < signal.max()):
        return False
    ys, xs = np.nonzero(inside)
    ys, xs = ys + y0 + top, xs + x0 + left
    if labels[max(0, ys.min() - 2) : ys.max() + 3, max(0, xs.min() - 2) : xs.max() + 3].any():
        return False
    scene[y0 + top : y0 + bottom, x0 + left : x0 + right] += signal[top:bottom, left:right]
    labels[ys, xs] = number
    return True


def _sense(
    rng: np.random.Generator, scene: Array, targets: NDArray[np.bool_], read: float, shot: float, config: InfraredConfig
) -> NDArray[np.uint16]:
    """Detector and camera: noise, stripes, bad pixels, detail enhancement, converter."""
    smear = rng.uniform(0.4, 1.2) if rng.random() < 0.6 else 0.0
    correlation = (smear * log_uniform(rng, 1.0, 3.0) if rng.random() < 0.3 else smear, smear)
    counts = scene + detector.temporal_noise(rng, detector.noise_sigma(scene, shot, read), correlation)
    column, row = rng.uniform(0, config.stripes, 2) * read * (rng.random(2) < 0.5)
    counts += detector.fixed_pattern(rng, scene, column, row, 0.3 * column)
    if rng.random() < config.sharpening:
        counts = detector.sharpen(counts, rng.uniform(0.3, 1.5), rng.uniform(1.0, 2.5))
    if rng.random() < config.bad_pixels:
        detector.bad_pixels(rng, counts, int(rng.integers(1, 6)), int(rng.integers(0, 4)), targets)
    return detector.quantise(counts, 8 if rng.random() < config.eight_bit else 14)
