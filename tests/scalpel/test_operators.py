"""Operators against brute-force loops, and the invariances their docstrings promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.scalpel import operators as ops

OPERATORS = {
    "ring": ops.RingTopHat,
    "patch": ops.PatchContrast,
    "blob": ops.BlobResponse,
    "diffusion": ops.DiffusionResidual,
}
SELECTIVE = ("ring", "patch", "blob")


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]()


def noise(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blob(size=65, sigma=1.5, height=1.0):
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    return height * torch.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None] ** 2) / sigma**2)[None, None]


def step_edge(size=65, height=1.0):
    return height * (torch.arange(size) > size // 2).float().expand(size, size)[None, None]


def at(image, row, column):
    """A pixel of a numpy map whose border is continued by replication."""
    return image[min(max(row, 0), image.shape[0] - 1), min(max(column, 0), image.shape[1] - 1)]


# ---- oracles: one pixel at a time, straight from the formulas, in float64 --------------------------------------


def ring_oracle(image, radii, weights, beta):
    out = np.zeros_like(image)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for r, c in np.ndindex(image.shape):
        centre = sum(kernel[i + 1, j + 1] * at(image, r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
        for radius, weight in zip(radii, weights, strict=True):
            along = range(-radius, radius + 1)
            sides = [
                max(at(image, r - radius, c + k) for k in along),
                max(at(image, r + radius, c + k) for k in along),
                max(at(image, r + k, c - radius) for k in along),
                max(at(image, r + k, c + radius) for k in along),
            ]
            soft = math.log(sum(math.exp(beta * (side - max(sides))) for side in sides)) / beta + max(sides)
            out[r, c] += weight * max(centre - soft, 0)
    return out


def patch_oracle(image, shifts, gains):
    def mean(r, c):
        return sum(at(image, r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9

    out = np.zeros_like(image)
    for r, c in np.ndindex(image.shape):
        scales = []
        for shift, gain in zip(shifts, gains, strict=True):
            products = []
            for dy, dx in ((0, 1), (1, 1), (1, 0), (1, -1)):
                ahead = max(mean(r, c) - mean(r + shift * dy, c + shift * dx), 0)
                behind = max(mean(r, c) - mean(r - shift * dy, c - shift * dx), 0)
                products.append(ahead * behind)
            scales.append(gain**2 * min(products))
        out[r, c] = math.sqrt(max(scales) + 1e-4) - 1e-2
    return out


def blob_oracle(image, sigmas, radius):
    out = np.zeros_like(image)
    offsets = range(-radius, radius + 1)
    for sigma in sigmas:
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(image, radius + 1, mode="edge")
        tall = padded.shape[0] - 2 * radius, padded.shape[1] - 2 * radius
        smooth = np.zeros(tall)
        for i in offsets:
            for j in offsets:
                window = padded[radius + i : radius + i + tall[0], radius + j : radius + j + tall[1]]
                smooth += kernel[i + radius] * kernel[j + radius] * window
        for r, c in np.ndindex(image.shape):
            s = smooth[r : r + 3, c : c + 3]
            yy, xx = s[0, 1] - 2 * s[1, 1] + s[2, 1], s[1, 0] - 2 * s[1, 1] + s[1, 2]
            xy = (s[2, 2] - s[2, 0] - s[0, 2] + s[0, 0]) / 4
            largest = np.linalg.eigvalsh(np.array([[yy, xy], [xy, xx]]))[-1]
            out[r, c] = max(out[r, c], 4 * sigma**2 * max(-largest, 0))
    return out


def diffusion_oracle(image, conductance, steps, rate):
    state = image.copy()
    for _ in range(steps):
        flow = np.zeros_like(state)
        for r, c in np.ndindex(state.shape):
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                difference = at(state, r + dy, c + dx) - state[r, c]
                flow[r, c] += difference / (1 + (difference / conductance) ** 2)
        state = state + rate * flow
    return image - state


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (13, 11)])
class TestAgainstBruteForce:
    """Every operator equals its formula, also on maps smaller than its support."""

    def test_ring_top_hat(self, height, width):
        image = noise(1, 1, height, width, scale=2.0)
        got = ops.ring_top_hat(image, (1, 3), torch.tensor([0.3, 0.7]), torch.tensor(6.0))
        want = ring_oracle(image[0, 0].double().numpy(), (1, 3), (0.3, 0.7), 6.0)
        np.testing.assert_allclose(got[0, 0], want, atol=1e-5)

    def test_patch_contrast(self, height, width):
        image = noise(1, 1, height, width, scale=2.0)
        got = ops.patch_contrast(image, (1, 3), torch.tensor([0.8, 1.2]))
        want = patch_oracle(image[0, 0].double().numpy(), (1, 3), (0.8, 1.2))
        np.testing.assert_allclose(got[0, 0], want, atol=1e-5)

    def test_blob_response(self, height, width):
        image = noise(1, 1, height, width, scale=2.0)
        got = ops.blob_response(image, torch.tensor([0.8, 1.5]), 5)
        want = blob_oracle(image[0, 0].double().numpy(), (0.8, 1.5), 5)
        np.testing.assert_allclose(got[0, 0], want, atol=5e-3)  # the root's floor is a dead zone of 2e-3 sigma^2

    def test_diffusion_residual(self, height, width):
        image = noise(1, 1, height, width, scale=2.0)
        got = ops.diffusion_residual(image, torch.tensor(0.7), steps=3, rate=0.2)
        want = diffusion_oracle(image[0, 0].double().numpy(), 0.7, 3, 0.2)
        np.testing.assert_allclose(got[0, 0], want, atol=1e-5)


class TestContract:
    """What all four promise."""

    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 9), (1, 2, 5, 4), (2, 1, 40, 33)])
    def test_keeps_the_shape(self, operator, shape):
        assert operator(noise(*shape)).shape == shape

    def test_is_depthwise(self, operator):
        maps = noise(2, 3, 20, 17)
        together = operator(maps)
        for b in range(2):
            for c in range(3):
                torch.testing.assert_close(together[b : b + 1, c : c + 1], operator(maps[b : b + 1, c : c + 1]))

    @pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1234.567])
    def test_flat_map_gives_exactly_zero(self, operator, value):
        assert torch.count_nonzero(operator(torch.full((2, 2, 19, 23), value))) == 0

    @settings(max_examples=15, deadline=None)
    @given(offset=st.floats(-50, 50), seed=st.integers(0, 1000))
    def test_offset_does_not_matter(self, offset, seed):
        image = noise(1, 1, 12, 14, seed=seed)
        for build in OPERATORS.values():
            torch.testing.assert_close(build()(image + offset), build()(image), atol=3e-4, rtol=1e-3)

    def test_translation_moves_the_response(self, operator):
        image = noise(1, 1, 64, 64)
        margin = 16  # more than any operator's support: steps of diffusion, ring, kernel radius
        moved = torch.roll(image, (5, -3), dims=(2, 3))
        want = operator(image)[..., margin : 64 - margin, margin : 64 - margin]
        got = operator(moved)[..., margin + 5 : 69 - margin, margin - 3 : 61 - margin]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("kind", ["zeros", "flat", "noise", "blob"])
    def test_gradients_are_finite(self, operator, kind):
        maps = {
            "zeros": torch.zeros(1, 1, 15, 15),
            "flat": torch.full((1, 1, 15, 15), 3.3),
            "noise": noise(1, 1, 15, 15),
            "blob": blob(15, height=40.0),
        }
        image = maps[kind].requires_grad_()
        operator(image).square().sum().add(operator(image).sum()).backward()
        assert torch.isfinite(image.grad).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in operator.parameters())

    def test_every_scalar_learns_from_a_target(self, operator):
        operator(blob(33, sigma=2.0, height=3.0) + noise(1, 1, 33, 33, scale=0.3)).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in operator.parameters())
        assert sum(parameter.numel() for parameter in operator.parameters()) <= 4

    def test_half_turn_and_transpose_commute(self, operator):
        image = noise(1, 1, 21, 18)
        torch.testing.assert_close(operator(image.flip(2, 3)), operator(image).flip(2, 3), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(operator(image.mT), operator(image).mT, atol=1e-4, rtol=1e-3)


class TestGain:
    """Positive gain scales the response where the docstring says so."""

    def test_ring_with_matching_beta(self):
        image, weights = noise(1, 1, 20, 20) + blob(20, height=6.0), torch.tensor([0.5, 0.5])
        plain = ops.ring_top_hat(image, (2, 4), weights, torch.tensor(8.0))
        torch.testing.assert_close(ops.ring_top_hat(3 * image, (2, 4), weights, torch.tensor(8.0 / 3)), 3 * plain)
        assert plain.max() > 1

    def test_patch_well_above_the_floor(self):
        image = blob(33, height=2.0)
        ratio = ops.PatchContrast()(10 * image)[0, 0, 16, 16] / ops.PatchContrast()(image)[0, 0, 16, 16]
        assert ratio.item() == pytest.approx(10, rel=0.01)

    def test_blob_up_to_the_dead_zone(self):
        image = blob(33, height=2.0)
        ratio = ops.BlobResponse()(10 * image)[0, 0, 16, 16] / ops.BlobResponse()(image)[0, 0, 16, 16]
        assert ratio.item() == pytest.approx(10, rel=0.01)

    def test_diffusion_with_matching_conductance(self):
        image = noise(1, 1, 20, 20)
        plain = ops.diffusion_residual(image, torch.tensor(0.5), 4)
        torch.testing.assert_close(ops.diffusion_residual(4 * image, torch.tensor(2.0), 4), 4 * plain)


class TestPriors:
    """Targets answer, backgrounds do not."""

    @pytest.mark.parametrize("name", SELECTIVE)
    @pytest.mark.parametrize("height", [1.0, 5.0, 20.0])
    def test_step_edge_is_rejected_beside_a_blob_of_its_height(self, name, height):
        operator = OPERATORS[name]()
        inner = slice(12, -12)
        peak = operator(blob(height=height))[0, 0, 32, 32]
        for edge in (step_edge(height=height), step_edge(height=height).mT):
            assert operator(edge)[..., inner, inner].max() < 0.05 * peak

    @pytest.mark.parametrize("sigma", [0.8, 1.5, 2.5])
    def test_blob_peak_sits_on_the_target(self, operator, sigma):
        image = blob(65, sigma=sigma, height=4.0) + noise(1, 1, 65, 65, scale=0.1)
        row, column = divmod(int(operator(image).argmax()), 65)
        assert abs(row - 32) <= 1
        assert abs(column - 32) <= 1

    def test_blob_response_reads_the_height_at_matched_scale(self):
        response = ops.blob_response(blob(65, sigma=2.0, height=3.0), torch.tensor([2.0]), 8)
        assert response[0, 0, 32, 32] == pytest.approx(3.0, rel=0.05)

    def test_dark_targets_are_not_answered(self):
        for name in SELECTIVE:
            assert OPERATORS[name]()(-blob(65, height=5.0))[0, 0, 30:35, 30:35].max() < 0.05

    def test_diffusion_stays_in_range_and_conserves_the_sum(self):
        image = noise(1, 1, 24, 24, scale=5.0)
        residual = ops.diffusion_residual(image, torch.tensor(3.0), steps=5, rate=0.25)
        state = image - residual
        assert state.min() >= image.min() - 1e-5
        assert state.max() <= image.max() + 1e-5
        assert abs(float(residual.double().sum())) < 1e-3

    def test_sigma_stays_inside_its_kernel(self):
        operator = ops.BlobResponse()
        torch.testing.assert_close(operator.sigmas, torch.tensor([1.0, 2.0]))
        with torch.no_grad():
            operator.raw_sigma.fill_(50.0)
        assert operator.sigmas.max() <= 2.7
        assert operator.radius >= 3 * operator.sigmas.max()
