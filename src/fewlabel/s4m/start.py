"""Networks that start from what another one has learnt in an earlier training."""

from pathlib import Path

import torch
from torch import nn

from fewlabel.core.errors import ModelError
from fewlabel.training.checkpoint import learnt_state, read_tensors
from fewlabel.training.loop import WEIGHTS

PLACES = (".", "smaller/smaller", "train/fewlabel")
"""Where a network is: in the folder itself, or in a run folder, the smaller one that ships before the larger one."""
OF_CLASSES = (".class_predictor.", ".criterion.empty_weight")
QUERIES = (".queries_embedder.", ".queries_features.")


def network_folder(path: Path, file: str = WEIGHTS) -> Path | None:
    """The folder of a network that holds a file: the path itself, or in a run folder that of the network that ships."""
    return next((path / place for place in PLACES if (path / place / file).is_file()), None)


@torch.no_grad()
def load_start(network: nn.Module, start: str) -> None:
    """Copy the weights of a trained network into a fresh one, in place.

    The class head is copied only where both have as many classes; otherwise it keeps its fresh weights. Of more queries
    than the fresh network has, the first are taken.

    Args:
        network: Fresh, of the same size (`NetworkConfig.name`) and norms.
        start: The folder of a network that fewlabel trained, or of its run.

    Raises:
        ModelError: There is no such network, or it is of another architecture.
    """
    folder = network_folder(Path(start))
    if folder is None:
        raise ModelError(
            f"network.start is {start!r}, but there is no {WEIGHTS} of a trained network; give the folder of a run of"
            " method s4m or of one of its networks, such as RUN/train/fewlabel, or leave it out."
        )
    path = folder / WEIGHTS
    tensors, state = read_tensors(path).tensors, network.state_dict()
    unknown = sorted(set(tensors) - set(state)) or sorted(set(learnt_state(network)) - set(tensors))
    for name in [] if unknown else tensors:
        own, given = state[name], tensors[name]
        if any(part in name for part in QUERIES):
            if len(given) < len(own):
                raise ModelError(
                    f"{path} is of a network with {len(given)} queries, but {len(own)} are wanted: set network.queries"
                    f" to {len(given)} or less."
                )
            given = given[: len(own)]
        if given.shape == own.shape:
            own.copy_(given)
        elif not any(part in name for part in OF_CLASSES):
            unknown.append(name)
    if unknown:
        raise ModelError(
            f"{path} is of another architecture than the network that is to start from it ({len(unknown)} tensors"
            f" differ, such as {unknown[0]}); give one of the same network.name and network.norm."
        )
