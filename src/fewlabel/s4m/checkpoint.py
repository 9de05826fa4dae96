"""A trained network as a folder: its weights, and a card with all that prediction needs besides them."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewlabel import __version__
from fewlabel.core.errors import ModelError
from fewlabel.core.files import read_json, write_json
from fewlabel.core.radiometry import Radiometry
from fewlabel.s4m.network import InstanceSegmenter, NetworkConfig
from fewlabel.training.checkpoint import load_weights, weights_sha256
from fewlabel.training.loop import WEIGHTS

CARD = "model.json"


class ModelCard(BaseModel):
    """What a network's folder says of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkConfig
    classes: tuple[str, ...] = Field(min_length=1, description="Names of the classes, in the order of their ids.")
    side: int | None = Field(description="Shorter side at which it sees images; null: as they are.")
    threshold: float = Field(ge=0, le=1, description="Score from which an object counts.")
    radiometry: Radiometry = Field(description="How grey values become its input.")
    name: str = Field(description="What predictions call it.")
    version: str = Field(default=__version__, description="Version of fewlabel that trained it.")


@dataclass(frozen=True)
class InstanceModel:
    """A trained network with its card; `sha256` is the hash of its weights."""

    network: InstanceSegmenter
    card: ModelCard
    sha256: str


def save_card(folder: Path, card: ModelCard) -> None:
    """Write the card beside a training's weights."""
    write_json(folder / CARD, card.model_dump(mode="json"))


def load_model(folder: Path) -> InstanceModel:
    """Load a network from its folder; neither its training data nor its run is needed.

    Args:
        folder: Holds `model.json` and `weights.safetensors`.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        ModelError: A file is missing, or the two do not belong together.
    """
    path = folder / CARD
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no trained network ({CARD} and {WEIGHTS}); train one with `fewlabel train`.")
    try:
        card = ModelCard.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path}: {key}: {first['msg']}; it was written by another version, train anew.") from None
    network = InstanceSegmenter(card.network, len(card.classes), pretrained=False)
    load_weights(folder / WEIGHTS, network)
    return InstanceModel(network.eval(), card, weights_sha256(network))
