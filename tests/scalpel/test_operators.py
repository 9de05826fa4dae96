"""Operators against brute-force loops, and the invariances their docstrings promise."""

import io
import math
from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewlabel.core.errors import ModelError
from fewlabel.deploy.export import AXES, OPSET
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


def edge(angle, kind, size=65):
    """A step of height 1 whose normal has ``angle``: thresholded pixels, pixels that average, or blurred by optics."""
    offsets = torch.arange(size, dtype=torch.float32) - size // 2
    distance = math.cos(angle) * offsets[None] + math.sin(angle) * offsets[:, None]
    profiles = {
        "thresholded": (distance > 0.3).float(),
        "averaged": (distance + 0.5).clamp(0, 1),
        "blurred": torch.special.ndtr(distance / 1.0),
    }
    return profiles[kind][None, None]


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
    second, mean = np.array([1, -2, 1]), np.array([1, 2, 1]) / 4
    stencils = {
        "yy": np.outer(second, mean),
        "xx": np.outer(mean, second),
        "xy": np.outer([-1, 0, 1], [-1, 0, 1]) / 4,
    }
    for sigma in sigmas:
        kernel = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]

        @cache
        def smooth(r, c, kernel=tuple(kernel)):
            total = 0.0
            for i, down in enumerate(kernel):
                for j, across in enumerate(kernel):
                    total += down * across * at(image, r + i - radius, c + j - radius)
            return total / sum(kernel) ** 2

        for r, c in np.ndindex(image.shape):
            near = np.array([[smooth(r + i, c + j) for j in (-1, 0, 1)] for i in (-1, 0, 1)])
            yy, xx, xy = (float((stencils[name] * near).sum()) for name in ("yy", "xx", "xy"))
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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 7), (13, 11)])
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


class TestModulesAgainstBruteForce:
    """The learnable scalars mean what the docstrings say, with the defaults and away from them."""

    image = noise(1, 1, 9, 12, seed=1, scale=2.0) + blob(20, height=5.0)[..., 6:15, 4:16]

    def check(self, operator, want, **tolerance):
        np.testing.assert_allclose(operator(self.image)[0, 0].detach(), want, **{"atol": 1e-5, **tolerance})

    def test_ring_top_hat(self):
        operator = ops.RingTopHat()
        self.check(operator, ring_oracle(self.image[0, 0].numpy(), (3, 5, 7), (1 / 3,) * 3, 10.001))
        with torch.no_grad():
            operator.size_logits.copy_(torch.tensor([0.0, math.log(2.0), math.log(5.0)]))
            operator.raw_beta.fill_(math.log(math.expm1(4.0)))
        self.check(operator, ring_oracle(self.image[0, 0].numpy(), (3, 5, 7), (0.125, 0.25, 0.625), 4.001))
        assert operator.radius.item() == pytest.approx(0.125 * 3 + 0.25 * 5 + 0.625 * 7)

    def test_patch_contrast(self):
        operator = ops.PatchContrast(shifts=(1, 3))
        self.check(operator, patch_oracle(self.image[0, 0].numpy(), (1, 3), (1.0, 1.0)))
        with torch.no_grad():
            operator.shift_logits.copy_(torch.tensor([0.0, math.log(3.0)]))
        self.check(operator, patch_oracle(self.image[0, 0].numpy(), (1, 3), (0.5, 1.5)))

    def test_blob_response(self):
        operator = ops.BlobResponse(sigmas=(0.7, 1.2), high=1.6)
        assert operator.radius == 5
        self.check(operator, blob_oracle(self.image[0, 0].numpy(), (0.7, 1.2), 5), atol=5e-3)
        with torch.no_grad():
            operator.raw_sigma.fill_(0.0)
        self.check(operator, blob_oracle(self.image[0, 0].numpy(), (1.0,), 5), atol=5e-3)

    def test_diffusion_residual(self):
        operator = ops.DiffusionResidual(conductance=0.8, steps=2)
        self.check(operator, diffusion_oracle(self.image[0, 0].numpy(), 0.801, 2, 0.2))


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

    @settings(max_examples=25, deadline=None)
    @given(
        steps=st.integers(-200_000, 200_000),
        seed=st.integers(0, 1000),
        size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    )
    def test_offset_does_not_matter(self, steps, seed, size):
        """Bit for bit, where the offset image itself is free of rounding."""
        image = torch.round(64 * noise(1, 1, *size, seed=seed)) / 64
        for build in OPERATORS.values():
            assert torch.equal(build()(image + steps / 64), build()(image))

    @settings(max_examples=15, deadline=None)
    @given(down=st.integers(0, 12), right=st.integers(0, 12), seed=st.integers(0, 1000))
    def test_translation_moves_the_response(self, down, right, seed):
        """Two crops of one scene agree where neither border is within reach, wherever they were cut."""
        reach, side = 10, 32  # pixels; the blob response sees furthest: radius 9 and one more
        scene = noise(1, 1, side + 12, side + 12, seed=seed)
        for build in OPERATORS.values():
            first = build()(scene[..., :side, :side])
            second = build()(scene[..., down : down + side, right : right + side])
            torch.testing.assert_close(
                second[..., reach : side - reach - down, reach : side - reach - right],
                first[..., reach + down : side - reach, reach + right : side - reach],
                atol=1e-5,
                rtol=1e-4,
            )

    def test_nothing_wraps_around(self, operator):
        image = torch.zeros(1, 1, 40, 40)
        image[..., 17:20, 1] = 3.0
        response = operator(image)
        assert response[..., :12].abs().max() > 0.3
        assert torch.count_nonzero(response[..., 20:]) == 0

    @pytest.mark.parametrize("height", [1, 6])
    def test_smooth_where_no_maximum_changes_hands(self, operator, height):
        """Derivatives by the image and by every scalar against finite differences."""
        operator = operator.double()
        with torch.no_grad():  # equal shares would tie the scales near the border
            for parameter in operator.parameters():
                parameter.add_(0.1 * torch.arange(parameter.numel()).reshape(parameter.shape))
        names = [name for name, _ in operator.named_parameters()]
        image = (noise(1, 1, height, 7, seed=3) + blob(7, height=6.0)[..., :height, :]).double().requires_grad_()

        def respond(image, *scalars):
            return torch.func.functional_call(operator, dict(zip(names, scalars, strict=True)), (image,))

        assert torch.autograd.gradcheck(respond, (image, *operator.parameters()))

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


gains = st.floats(1.0, 100.0)
seeds = st.integers(0, 1000)


def lively(seed):
    """Noise with a target in it, float64."""
    return (noise(1, 1, 12, 14, seed=seed) + blob(20, height=5.0)[..., 4:16, 3:17]).double()


def assert_between(least, value, most):
    slack = 1e-9 * (1 + value.abs().max())
    assert (value >= least - slack).all()
    assert (value <= most + slack).all()


class TestGain:
    """What a gain of the image does to the response: the inequalities of the docstrings."""

    @settings(max_examples=20, deadline=None)
    @given(gain=gains, seed=seeds, beta=st.floats(0.5, 30.0))
    def test_ring(self, gain, seed, beta):
        image, weights, sharp = lively(seed), torch.tensor([0.4, 0.6]).double(), torch.tensor(beta).double()
        plain = ops.ring_top_hat(image, (2, 4), weights, sharp)
        torch.testing.assert_close(ops.ring_top_hat(gain * image, (2, 4), weights, sharp / gain), gain * plain)
        got = ops.ring_top_hat(gain * image, (2, 4), weights, sharp)
        assert_between(gain * plain, got, gain * (plain + math.log(4) / beta))

    @settings(max_examples=20, deadline=None)
    @given(gain=gains, seed=seeds)
    def test_patch(self, gain, seed):
        operator, image = ops.PatchContrast().double(), lively(seed)
        plain = operator(image)
        assert_between(gain * plain, operator(gain * image), gain * plain + (gain - 1) * 0.01)

    @settings(max_examples=20, deadline=None)
    @given(gain=gains, seed=seeds)
    def test_blob(self, gain, seed):
        operator, image = ops.BlobResponse().double(), lively(seed)
        plain = operator(image)
        dead_zone = 2e-3 * operator.sigmas.max().item() ** 2
        assert_between(gain * plain, operator(gain * image), gain * plain + (gain - 1) * dead_zone)

    @settings(max_examples=20, deadline=None)
    @given(gain=gains, seed=seeds, conductance=st.floats(0.05, 5.0), steps=st.integers(1, 5))
    def test_diffusion(self, gain, seed, conductance, steps):
        image, contrast = lively(seed), torch.tensor(conductance).double()
        plain = ops.diffusion_residual(image, contrast, steps)
        torch.testing.assert_close(ops.diffusion_residual(gain * image, gain * contrast, steps), gain * plain)
        bound = 2 * 0.2 * steps * contrast
        assert_between(-bound, ops.diffusion_residual(gain * image, contrast, steps), bound)


class TestPriors:
    """Targets answer, backgrounds do not."""

    @pytest.mark.parametrize("name", SELECTIVE)
    @pytest.mark.parametrize("kind", ["thresholded", "averaged", "blurred"])
    def test_step_edges_are_rejected_beside_a_blob_of_their_height(self, name, kind):
        """In 16 orientations; the stairs of a thresholded oblique edge are corners, which curve down like targets."""
        operator = OPERATORS[name]()
        inner = slice(12, -12)
        for height in (1.0, 20.0):
            peak = operator(blob(height=height))[0, 0, 32, 32]
            for turn in range(16):
                worst = operator(height * edge(turn * math.pi / 8, kind))[..., inner, inner].max() / peak
                stairs = kind == "thresholded" and turn % 2 == 1
                assert worst <= ((0.25 if stairs else 0.03) if name == "blob" else 1e-6)

    @pytest.mark.parametrize("sigma", [0.8, 1.5, 2.5])
    def test_blob_peak_sits_on_the_target(self, operator, sigma):
        image = blob(65, sigma=sigma, height=4.0) + noise(1, 1, 65, 65, scale=0.1)
        row, column = divmod(int(operator(image).argmax()), 65)
        assert abs(row - 32) <= 1
        assert abs(column - 32) <= 1

    def test_blob_response_reads_the_height_at_matched_scale(self):
        for sigma, share in ((1.0, 0.79), (2.0, 0.93), (2.7, 0.96)):
            response = ops.blob_response(blob(65, sigma=sigma, height=3.0), torch.tensor([sigma]), 9)
            assert response[0, 0, 32, 32] == pytest.approx(3.0 * share, rel=0.01)

    def test_blob_response_is_largest_at_the_matched_scale(self):
        """What "scale-normalised" is for; the differences smooth a little themselves, hence the tolerance."""
        tried = np.arange(1.0, 3.0, 0.05)
        for sigma in (1.5, 2.0, 2.5):
            spot = blob(65, sigma=sigma)
            heights = [ops.blob_response(spot, torch.tensor([t]).float(), 9)[0, 0, 32, 32].item() for t in tried]
            assert tried[int(np.argmax(heights))] == pytest.approx(sigma, abs=0.2)

    def test_ring_learns_its_radius(self):
        """A spot that a small ring cuts through asks for a wider one, and its gradient says so."""
        operator = ops.RingTopHat()
        assert operator.radius.item() == pytest.approx(5.0)
        for _ in range(10):
            (slope,) = torch.autograd.grad(
                operator(blob(21, sigma=2.5, height=5.0))[0, 0, 10, 10], operator.size_logits
            )
            with torch.no_grad():
                operator.size_logits.add_(5.0 * slope)
        assert operator.radius.item() > 6.9

    def test_dark_targets_are_not_answered(self):
        for name in SELECTIVE:
            assert OPERATORS[name]()(-blob(65, height=5.0))[0, 0, 30:35, 30:35].max() < 0.05

    @settings(max_examples=20, deadline=None)
    @given(seed=seeds, rate=st.floats(0.01, 0.25), conductance=st.floats(0.01, 1e4), steps=st.integers(1, 40))
    def test_diffusion_stays_in_range_and_conserves_the_sum(self, seed, rate, conductance, steps):
        """Stable for every step size allowed: with a huge K and rate 1/4 a checkerboard is the worst case."""
        checks = (-1.0) ** (torch.arange(10)[:, None] + torch.arange(9)).double()
        for image in (noise(1, 1, 10, 9, seed=seed, scale=5.0).double(), checks[None, None]):
            residual = ops.diffusion_residual(image, torch.tensor(conductance).double(), steps, rate)
            state = image - residual
            assert state.min() >= image.min() - 1e-9
            assert state.max() <= image.max() + 1e-9
            assert abs(float(residual.sum())) < 1e-9

    def test_sigma_stays_inside_its_kernel(self):
        operator = ops.BlobResponse()
        torch.testing.assert_close(operator.sigmas, torch.tensor([1.0, 2.0]))
        with torch.no_grad():
            operator.raw_sigma.fill_(50.0)
        assert operator.sigmas.max() <= 2.7
        assert operator.radius >= 3 * operator.sigmas.max()


@pytest.mark.parametrize(
    "build",
    [
        lambda: ops.RingTopHat(radii=()),
        lambda: ops.RingTopHat(radii=(0, 3)),
        lambda: ops.RingTopHat(beta=0.0),
        lambda: ops.PatchContrast(shifts=(-1,)),
        lambda: ops.BlobResponse(sigmas=()),
        lambda: ops.BlobResponse(sigmas=(1.0, 3.0)),
        lambda: ops.DiffusionResidual(conductance=-1.0),
        lambda: ops.DiffusionResidual(steps=0)(torch.zeros(1, 1, 3, 3)),
        lambda: ops.diffusion_residual(torch.zeros(1, 1, 3, 3), torch.tensor(1.0), 3, rate=0.3),
    ],
)
def test_scalars_out_of_range_are_one_sentence(build):
    with pytest.raises(ModelError, match=r"^[^.]+(\.\d[^.]*)*\.$"):
        build()


def run_at_many_sizes(content, operator):
    """Compare an exported operator with the original, at sizes below and above the example's and its own reach."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 1, 1), (2, 1, 5), (1, 3, 2), (3, 7, 4), (1, 33, 21), (2, 64, 65)):
        image = noise(batch, 2, height, width, seed=height) + 5.0 * (torch.arange(width) == width // 2)
        (got,) = session.run(None, {"x": image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(got, operator(image).numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
class TestOnnx:
    """Dynamic batch, height and width, run by ONNX Runtime."""

    def test_traced(self, operator):
        buffer = io.BytesIO()
        axes = dict.fromkeys(("x", "y"), {0: "batch", 2: "height", 3: "width"})
        torch.onnx.export(
            operator.requires_grad_(False),
            (noise(2, 2, 19, 23),),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
        run_at_many_sizes(buffer.getvalue(), operator)

    @pytest.mark.slow
    def test_as_students_are_exported(self, operator):
        program = torch.onnx.export(
            operator.requires_grad_(False),
            (noise(2, 2, 19, 23),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=(dict.fromkeys(AXES, torch.export.Dim.DYNAMIC),),
            verbose=False,
        )
        run_at_many_sizes(program.model_proto.SerializeToString(), operator)
