"""Four white-box operators for small bright targets, each a formula with a handful of learnable scalars.

They are our own design after Scalpel-SAM (arXiv 2512.22483), whose operators are not public, and after the classical
literature on infrared small targets. All four share these properties:

* input and output are float ``(B, C, H, W)``, every channel is treated on its own (depthwise), any H, W >= 1;
* the border is continued by replication, so nothing wraps around and a border pixel has no phantom edge;
* an offset ``x + b`` does not change the output; a flat map gives exactly 0;
* outputs are in the unit of the input (contrast), the gradient is finite everywhere, also on constant input;
* a shift of the image shifts the output, except within reach of the border;
* built from padding, slices and elementwise arithmetic alone, which every ONNX runtime knows; height and width may be
  dynamic axes of the exported file.

Every docstring says what the operator takes a target for (prior) and what a gain a >= 1 of the image does (gain). Pure
functions come first; the ``nn.Module`` classes only hold the scalars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewlabel.core.errors import ModelError

_SQRT_FLOOR = 1e-2  # contrast below which square roots become linear; bounds their slope, see `patch_contrast`


def _anchored(x: Tensor) -> Tensor:
    """Subtract each map's first pixel, so that a flat map is exactly 0 before any rounding sum is formed."""
    return x - x[..., :1, :1]


def _pad(x: Tensor, margin: int) -> Tensor:
    """Continue ``x`` (B, C, H, W) by ``margin`` replicated pixels on all sides."""
    return functional.pad(x, (margin, margin, margin, margin), mode="replicate")


def _window(padded: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """The ``height`` x ``width`` view of ``padded`` (B, C, H', W') that starts at row ``top``, column ``left``."""
    return padded[..., top : top + height, left : left + width]


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise maximum to rounding; its gradient costs a quarter of `torch.maximum`'s, which shares out ties."""
    return a + functional.relu(b - a)


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise minimum to rounding, see `_larger`."""
    return a - functional.relu(a - b)


def _running_max(x: Tensor, length: int, dim: int) -> Tensor:
    """Maximum over ``length`` consecutive entries along ``dim``; the output is shorter by ``length - 1``.

    Doubling: log2(length) maxima in place of length - 1, possible because a maximum may count an entry twice.
    """
    span = 1
    while span < length:
        step = min(span, length - span)
        size = x.shape[dim] - step
        x = _larger(x.narrow(dim, 0, size), x.narrow(dim, step, size))
        span += step
    return x


def _binomial(padded: Tensor) -> Tensor:
    """Weighted 3x3 mean (1 2 1)/4 x (1 2 1)/4 of a padded map; the output is smaller by 2 in both directions."""
    rows = 0.25 * (padded[..., :-2, :] + padded[..., 2:, :]) + 0.5 * padded[..., 1:-1, :]
    return 0.25 * (rows[..., :-2] + rows[..., 2:]) + 0.5 * rows[..., 1:-1]


def _box(padded: Tensor) -> Tensor:
    """Plain 3x3 mean of a padded map; the output is smaller by 2 in both directions."""
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) * (1.0 / 9.0)


def ring_top_hat(x: Tensor, radii: Sequence[int], weights: Tensor, beta: Tensor) -> Tensor:
    """Centre minus the soft maximum of a ring around it, where positive.

    ``y = sum_r weights_r relu(c - (1/beta) log sum_{s=1..4} exp(beta M_{r,s}))`` with ``c`` the binomial 3x3 mean and
    ``M_{r,s}`` the maximum of x on side s of the square ring at Chebyshev distance r (2r + 1 pixels each).

    Prior: a target is a peak that fits inside the ring and is brighter than everything on it, while background is
    smooth or reaches further: an edge, a ridge or a plateau is as bright on the ring as in the centre. As the
    log-sum-exp is never below the maximum, one such ring pixel makes the output exactly 0, at the price of a dead zone
    of at most ``log(4) / beta``.

    Gain: homogeneous under ``(x, beta) -> (a x, beta / a)``. With beta fixed and shares that sum to 1,
    ``a y(x) <= y(a x) <= a (y(x) + log(4) / beta)``.

    Args:
        x: float (B, C, H, W).
        radii: Ring distances in pixels, each >= 1.
        weights: float (len(radii),), the share of every ring.
        beta: float scalar > 0, sharpness of the soft maximum in 1 / unit of x.

    Returns:
        float (B, C, H, W), >= 0, unit of x.

    Source: ring-shaped top-hat with two structuring elements (Bai & Zhou, Pattern Recognition 43, 2010), maximum
    softened.
    """
    height, width = x.shape[-2:]
    margin = max(radii)
    padded = _pad(_anchored(x), margin)
    centre = _binomial(_window(padded, margin - 1, margin - 1, height + 2, width + 2))
    total = torch.zeros_like(centre)
    for index, radius in enumerate(radii):
        near, far, length = margin - radius, margin + radius, 2 * radius + 1
        rows = _running_max(padded[..., near : near + width + 2 * radius], length, -1)
        columns = _running_max(padded[..., near : near + height + 2 * radius, :], length, -2)
        sides = (
            _window(rows, near, 0, height, width),
            _window(rows, far, 0, height, width),
            _window(columns, 0, near, height, width),
            _window(columns, 0, far, height, width),
        )
        ring = torch.logsumexp(beta * torch.stack(sides), dim=0) / beta
        total = total + weights[index] * functional.relu(centre - ring)
    return total


def patch_contrast(x: Tensor, shifts: Sequence[int], gains: Tensor) -> Tensor:
    """Multi-scale patch contrast of bright targets, as a square root so that it is linear in contrast.

    With ``m`` the 3x3 mean, ``D_k = relu(m(p) - m(p + d o_k))`` for the 8 directions o_k:
    ``P_d = min_{k=1..4} D_k D_{k+4}`` and ``y = sqrt(max_d gains_d^2 P_d)``. The root is taken as
    ``P / (sqrt(P + e^2) + e)``, e = 0.01: the plain root far above e, exactly 0 at 0, slope at most 1 / (2e). Scales
    differ in the distance of the cells, not in their size: 3x3 is what a point target covers.

    Prior: a target stands out on both sides in every direction. An edge does so on one side only, which makes a factor
    and hence the response 0; along a ridge there is little contrast, and none if it runs in one of the directions.

    Gain: ``a y(x) <= y(a x) <= a y(x) + (a - 1) e``: homogeneous where the response is well above e.

    Args:
        x: float (B, C, H, W).
        shifts: Distances d between centre cell and neighbour cells in pixels, each >= 1.
        gains: float (len(shifts),), >= 0, the weight of every distance.

    Returns:
        float (B, C, H, W), >= 0, unit of x.

    Source: multiscale patch-based contrast measure (Wei, You & Li, Pattern Recognition 58, 2016), of positive contrast
    only; the root is ours, the measure itself being quadratic in contrast.
    """
    height, width = x.shape[-2:]
    margin = max(shifts)
    mean = _box(_pad(_anchored(x), margin + 1))
    centre = _window(mean, margin, margin, height, width)
    best: Tensor | None = None
    for index, shift in enumerate(shifts):
        lowest: Tensor | None = None
        for dy, dx in ((0, shift), (shift, shift), (shift, 0), (shift, -shift)):
            ahead = functional.relu(centre - _window(mean, margin + dy, margin + dx, height, width))
            behind = functional.relu(centre - _window(mean, margin - dy, margin - dx, height, width))
            product = ahead * behind
            lowest = product if lowest is None else _smaller(lowest, product)
        assert lowest is not None
        scaled = lowest * gains[index].square()
        best = scaled if best is None else _larger(best, scaled)
    assert best is not None
    return best / (torch.sqrt(best + _SQRT_FLOOR**2) + _SQRT_FLOOR)


def gaussian_kernel(sigma: Tensor, radius: int) -> Tensor:
    """Sampled Gaussian of standard deviation ``sigma`` (scalar, pixels), float (2 radius + 1,), sum 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    return kernel / kernel.sum()


def _symmetric_filter(x: Tensor, half: Tensor, dim: int) -> Tensor:
    """Correlate ``x`` along ``dim`` with the symmetric kernel whose centre and right half are ``half`` (R + 1,).

    Sums of mirrored slices: several times faster on a CPU than a one-channel convolution. Shorter by 2R along ``dim``.
    """
    radius = half.shape[0] - 1
    size = x.shape[dim] - 2 * radius
    total = half[0] * x.narrow(dim, radius, size)
    for offset in range(1, radius + 1):
        pair = x.narrow(dim, radius - offset, size) + x.narrow(dim, radius + offset, size)
        total = total + half[offset] * pair
    return total


def blob_response(x: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Smaller of the two downward curvatures of the smoothed map, scale-normalised, largest over the scales.

    ``L = G_sigma * x``, H its Hessian, ``l1`` the larger eigenvalue of H: ``y = max_sigma 4 sigma^2 relu(-l1)``. Second
    differences are smoothed across by (1 2 1) / 4, e.g. ``H_xx = [1 2 1]^T [1 -2 1] / 4``: then ``H_xx = H_yy = H_xy``
    on any map that varies along a diagonal alone, and diagonal edges are rejected as exactly as upright ones. The
    eigenvalue's root carries a floor of 1e-3, which keeps its gradient finite and acts as a dead zone of at most
    ``2e-3 sigma^2``.

    Prior: optics spread a point source into a Gaussian spot, which curves down in every direction. At its centre, a
    spot of height A and standard deviation s answers most at about sigma = s, by 0.79 A for s = 1 to 0.96 A for s = 2.7
    (differences over whole pixels smooth a little). A straight edge or ridge has one eigenvalue near 0 or above and is
    rejected; a bent one, or the stairs of one without any blur, answers by its curvature.

    Gain: ``a y(x) <= y(a x) <= a y(x) + 2e-3 (a - 1) max(sigma)^2``: homogeneous up to the dead zone.

    Args:
        x: float (B, C, H, W).
        sigmas: float (S,), standard deviations in pixels, > 0.
        radius: Half width of the kernels in pixels; about 3 times the largest sigma.

    Returns:
        float (B, C, H, W), >= 0, unit of x.

    Source: scale-normalised Hessian blob measure (Lindeberg, IJCV 1998; Frangi et al., MICCAI 1998).
    """
    padded = _pad(_anchored(x), radius + 1)
    best: Tensor | None = None
    for sigma in sigmas.unbind():
        half = gaussian_kernel(sigma, radius)[radius:]
        smooth = _symmetric_filter(_symmetric_filter(padded, half, -2), half, -1)
        upper, centre, lower = smooth[..., :-2, :], smooth[..., 1:-1, :], smooth[..., 2:, :]
        rising = upper[..., :-2] + lower[..., 2:]
        falling = upper[..., 2:] + lower[..., :-2]
        trace = 0.5 * (rising + falling) - 2.0 * centre[..., 1:-1]
        upright = (centre[..., :-2] + centre[..., 2:]) - (upper[..., 1:-1] + lower[..., 1:-1])
        oblique = 0.5 * (rising - falling)
        spread = torch.sqrt(upright.square() + oblique.square() + 1e-6)
        response = (2.0 * sigma.square()) * functional.relu(-(trace + spread))
        best = response if best is None else _larger(best, response)
    assert best is not None
    return best


def diffusion_residual(x: Tensor, conductance: Tensor, steps: int, rate: float = 0.2) -> Tensor:
    """What edge-stopping diffusion removes from a map: ``x - u_n``.

    ``u <- u + rate sum_{4 neighbours} g(D) D``, ``g(D) = 1 / (1 + (D / K)^2)``, no flux through the border. Each step
    is a weighted mean of a pixel and its neighbours (no weight < 0, as rate <= 1/4), so u never leaves the range of x.

    Prior: heat spreads, but not across edges. Background is piecewise smooth and keeps its place under diffusion, so
    that x - u cancels there and at strong extended edges; what is small loses its heat on all sides and stays in the
    residual. Noise is small too: this is background suppression, selective only beside the other operators.

    Gain: homogeneous under ``(x, K) -> (a x, a K)``. With K fixed it saturates: ``|y| <= 2 rate steps K``.

    Args:
        x: float (B, C, H, W).
        conductance: float scalar K > 0, the contrast at which the flow is halved, unit of x.
        steps: Number of explicit steps, >= 1.
        rate: Step size, in (0, 0.25] for stability of the explicit scheme.

    Returns:
        float (B, C, H, W), signed, unit of x; its sum is 0.

    Raises:
        ModelError: If there is no step, or the step is not stable.

    Source: Perona & Malik, IEEE PAMI 1990, eq. 7 with the rational edge-stopping function.
    """
    if steps < 1 or not 0 < rate <= 0.25:
        raise ModelError(
            f"The diffusion residual got {steps} steps of size {rate} but expects at least one step of size in "
            "(0, 0.25]; larger ones are not stable, so take more of them instead."
        )
    start = _anchored(x)
    state = start
    scale = 1.0 / conductance.square()
    for _ in range(steps):
        down = state[..., 1:, :] - state[..., :-1, :]
        right = state[..., :, 1:] - state[..., :, :-1]
        down = functional.pad(down / (1.0 + scale * down.square()), (0, 0, 1, 1))
        right = functional.pad(right / (1.0 + scale * right.square()), (1, 1, 0, 0))
        flow = (down[..., 1:, :] - down[..., :-1, :]) + (right[..., :, 1:] - right[..., :, :-1])
        state = state + rate * flow
    return start - state


def _softplus_inverse(value: float) -> float:
    """The raw number whose softplus is ``value`` > 0."""
    if value <= 0:
        raise ModelError(f"An operator's sharpness or conductance is {value} at the start; give a value above 0.")
    return math.log(math.expm1(value))


def _distances(values: Sequence[int]) -> tuple[int, ...]:
    """Ring radii or cell shifts as a tuple, checked."""
    if not values or min(values) < 1:
        raise ModelError(f"An operator got the distances {list(values)}; give at least one, each of 1 pixel or more.")
    return tuple(values)


class RingTopHat(nn.Module):
    """`ring_top_hat` with learnable radius and sharpness (softplus).

    The radius is learnt as a mixture: a maximum over a ring has no derivative by the ring's size, the shares of several
    rings have. A softmax over ``radii`` gives the shares, so `radius`, their mean, moves continuously from the smallest
    to the largest of them, and with all of the share on one ring the operator is that ring's top-hat.
    """

    def __init__(self, radii: Sequence[int] = (3, 5, 7), beta: float = 10.0) -> None:
        """Start with equal shares of all ``radii`` (pixels): (3, 5, 7) suits pixels, (1, 2, 3) tokens.

        Raises:
            ModelError: If a radius is below 1 or there is none, or ``beta`` is not above 0.
        """
        super().__init__()
        self.radii = _distances(radii)
        self.size_logits = nn.Parameter(torch.zeros(len(self.radii)))
        self.raw_beta = nn.Parameter(torch.tensor(_softplus_inverse(beta)))

    @property
    def radius(self) -> Tensor:
        """Current radius: the mean of ``radii`` under their shares; float scalar, pixels, differentiable."""
        return torch.softmax(self.size_logits, dim=0) @ self.size_logits.new_tensor(self.radii)

    def forward(self, x: Tensor) -> Tensor:
        """Response of float ``x`` (B, C, H, W), same shape, >= 0."""
        beta = functional.softplus(self.raw_beta) + 1e-3
        return ring_top_hat(x, self.radii, torch.softmax(self.size_logits, dim=0), beta)


class PatchContrast(nn.Module):
    """`patch_contrast` with a learnable gain per distance: ``len(shifts) * softmax``, 1 each at the start."""

    def __init__(self, shifts: Sequence[int] = (3, 5, 7)) -> None:
        """Use the given ``shifts`` between cells (pixels): (3, 5, 7) suits pixels, (1, 2, 3) tokens.

        Raises:
            ModelError: If a shift is below 1 or there is none.
        """
        super().__init__()
        self.shifts = _distances(shifts)
        self.shift_logits = nn.Parameter(torch.zeros(len(self.shifts)))

    def forward(self, x: Tensor) -> Tensor:
        """Response of float ``x`` (B, C, H, W), same shape, >= 0."""
        gains = len(self.shifts) * torch.softmax(self.shift_logits, dim=0)
        return patch_contrast(x, self.shifts, gains)


class BlobResponse(nn.Module):
    """`blob_response` with learnable scales, bounded so that the kernels keep a fixed size.

    ``sigma = low + (high - low) sigmoid(raw)``: smooth and always inside ``(low, high)``.
    """

    low = 0.4  # below this a sampled Gaussian is a single pixel and its curvature no longer depends on sigma

    def __init__(self, sigmas: Sequence[float] = (1.0, 2.0), high: float = 2.7) -> None:
        """Start at the given ``sigmas`` (pixels), each strictly between 0.4 and ``high``.

        Raises:
            ModelError: If a sigma lies outside that range or there is none.
        """
        super().__init__()
        if not sigmas or not all(self.low < sigma < high for sigma in sigmas):
            raise ModelError(
                f"The blob response got the standard deviations {list(sigmas)}; give at least one, each between "
                f"{self.low} and {high} pixels."
            )
        self.high = high
        self.radius = math.ceil(3.0 * high)
        shares = [(sigma - self.low) / (high - self.low) for sigma in sigmas]
        self.raw_sigma = nn.Parameter(torch.tensor([math.log(share / (1.0 - share)) for share in shares]))

    @property
    def sigmas(self) -> Tensor:
        """Current standard deviations, float (S,), pixels."""
        return self.low + (self.high - self.low) * torch.sigmoid(self.raw_sigma)

    def forward(self, x: Tensor) -> Tensor:
        """Response of float ``x`` (B, C, H, W), same shape, >= 0."""
        return blob_response(x, self.sigmas, self.radius)


class DiffusionResidual(nn.Module):
    """`diffusion_residual` with a learnable conductance K (softplus)."""

    def __init__(self, conductance: float = 1.0, steps: int = 4) -> None:
        """Start at ``conductance`` K in units of the input (standard deviations, for standardised images).

        Raises:
            ModelError: If ``conductance`` is not above 0.
        """
        super().__init__()
        self.steps = steps
        self.raw_conductance = nn.Parameter(torch.tensor(_softplus_inverse(conductance)))

    def forward(self, x: Tensor) -> Tensor:
        """Residual of float ``x`` (B, C, H, W), same shape, signed."""
        return diffusion_residual(x, functional.softplus(self.raw_conductance) + 1e-3, self.steps)
