"""Networks that start from what another has learnt: the embedded one of rendered scenes, or any earlier training."""

from pathlib import Path

import torch
from torch import nn

from fewlabel.core.errors import ModelError
from fewlabel.training.checkpoint import learnt_state, read_tensors
from fewlabel.training.loop import WEIGHTS

RENDERED = "rendered"
RENDERED_FOLDER = Path(__file__).parent / "weights" / "tiny"
OF_CLASSES = (".class_predictor.", ".criterion.empty_weight")
QUERIES = (".queries_embedder.", ".queries_features.")


@torch.no_grad()
def load_start(network: nn.Module, start: str) -> None:
    """Copy the weights of a trained network into a fresh one, in place.

    The class head is copied only where both have as many classes; otherwise it keeps its fresh weights. Of more queries
    than the fresh network has, the first are taken.

    Args:
        network: Fresh, of the same size (`NetworkConfig.name`) and norms.
        start: `rendered`, or the folder of a network that fewlabel trained.

    Raises:
        ModelError: There is no such network, or it is of another architecture.
    """
    path = (RENDERED_FOLDER if start == RENDERED else Path(start)) / WEIGHTS
    if not path.is_file():
        raise ModelError(
            f"network.start is {start!r}, but there is no {path}; give the folder of a trained network, {RENDERED!r}"
            " for the embedded one, or leave it out."
        )
    tensors, state = read_tensors(path).tensors, network.state_dict()
    unknown = sorted(set(tensors) - set(state)) or sorted(set(learnt_state(network)) - set(tensors))
    for name in [] if unknown else tensors:
        own, given = state[name], tensors[name]
        if any(part in name for part in QUERIES) and len(given) >= len(own):
            given = given[: len(own)]
        if given.shape == own.shape:
            own.copy_(given)
        elif not any(part in name for part in OF_CLASSES):
            unknown.append(name)
    if unknown:
        raise ModelError(
            f"{path} is of another architecture than the network that is to start from it ({len(unknown)} tensors"
            f" differ, such as {unknown[0]}); give one of the same size and norms, and as many queries or more."
        )
