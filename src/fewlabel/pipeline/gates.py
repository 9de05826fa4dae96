"""What a teacher's router decided for one image: a gate per level and expert, and a map of it where tokens differ."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewlabel.data.tiles import TILE, blend_weights, pad
from fewlabel.report.explained import LevelGates
from fewlabel.scalpel.router import Gates, Router
from fewlabel.scalpel.teacher import ScalpelTeacher

EVEN = 1e-4  # gates of one tile that differ by less than this are the same at every token


@torch.inference_mode()
def image_gates(teacher: ScalpelTeacher, image: np.ndarray) -> list[LevelGates]:
    """Gates of a whole image, from the tiles that the teacher looks at, blended as its probabilities are.

    Args:
        teacher: The teacher, on the CPU and in evaluation mode.
        image: float32 `(H, W)`, standardised over the whole image.

    Returns:
        One entry per adapted level, from early to late; none for a teacher without router. The image gate is the mean
        over the tiles.
    """
    adapter = teacher.adapter
    if adapter is None or not adapter.expert_names:
        return []
    padded = pad(image)
    shares = blend_weights(*padded.shape)
    count = len(adapter.expert_names)
    gates: dict[int, np.ndarray] = {}
    maps: dict[int, np.ndarray] = {}
    differ: set[int] = set()
    for (top, left), share in shares:
        crop = np.ascontiguousarray(padded[top : top + TILE, left : left + TILE])
        with recorded(adapter) as seen:
            teacher(torch.from_numpy(crop)[None, None])
        for (level, (of_image, _)), tokens in zip(
            adapter.gates.items(), by_level(seen, len(adapter.gates)), strict=True
        ):
            spread = tokens.amax(dim=(1, 2)) - tokens.amin(dim=(1, 2))
            if float(spread.max()) > EVEN:
                differ.add(level)
            whole = functional.interpolate(tokens[None], (TILE, TILE), mode="nearest")[0].double().numpy()
            gates[level] = gates.get(level, np.zeros(count)) + of_image[0].double().numpy() / len(shares)
            canvas = maps.setdefault(level, np.zeros((count, *padded.shape)))
            canvas[:, top : top + TILE, left : left + TILE] += share * whole
    height, width = image.shape
    return [
        LevelGates(
            str(level),
            tuple(gates[level].tolist()),
            maps[level][:, :height, :width].astype(np.float32) if level in differ else None,
        )
        for level in gates
    ]


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Gates]]:
    """Collect what the routers inside a module decide, in the order in which they are asked."""
    seen: list[Gates] = []
    routers = [part for part in module.modules() if isinstance(part, Router)]
    handles = [router.register_forward_hook(lambda _router, _inputs, gates: seen.append(gates)) for router in routers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def by_level(seen: list[Gates], levels: int) -> list[Tensor]:
    """Final gates of one image at the tokens, float `(E, h, w)` per level: mean over the routers of a level.

    The encoder's blocks, and so the levels, come one after the other, and every level has the same number of routers.
    """
    each = len(seen) // levels
    groups = [seen[start : start + each] for start in range(0, len(seen), each)]
    return [torch.stack([gates.weights[0] for gates in group]).mean(dim=0) for group in groups]
