"""Objects in a folder of images, by a network that a run of instance segmentation trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from fewlabel.core.errors import ModelError
from fewlabel.core.masks import EIGHT_CONNECTED, decode
from fewlabel.core.types import Image, Instances
from fewlabel.data.pixels import MAX_PIXELS, read_image
from fewlabel.data.views import colours
from fewlabel.deploy.overlay import overlay
from fewlabel.deploy.predictions import Found, Head, PredictSummary, write_predictions
from fewlabel.pipeline.instance_tiles import objects_of_any_size
from fewlabel.s4m.checkpoint import CARD, InstanceModel, load_model
from fewlabel.s4m.start import network_folder


def model_folder(path: Path) -> Path:
    """The folder of a network: the path itself, or in a run folder that of the network that ships.

    Raises:
        ModelError: There is none.
    """
    if (folder := network_folder(path, CARD)) is not None:
        return folder
    raise ModelError(
        f"{path} holds no trained network of instance segmentation; give a run folder whose train stage is done, the"
        " folder of one of its networks, or an exported .onnx file."
    )


def predict_instances(
    model_path: Path,
    images: Path | Sequence[Path],
    out: Path,
    *,
    keep_going: bool = False,
    device: str = "cpu",
    max_pixels: int = MAX_PIXELS,
) -> PredictSummary:
    """Find the objects of all images of a folder, or of the given files.

    Args:
        model_path: A run folder, or the folder of one of its networks; see `model_folder`.
        images: As in `fewlabel.deploy.predictions.write_predictions`, also the next two.
        out: Output folder. `masks/` are label maps, uint16: 0 ground, k the k-th annotation of the image; a surer
            object lies over a less sure one.
        keep_going: Go on without files that cannot be read.
        device: Where the network runs.
        max_pixels: Largest height x width of an image that is decoded.

    Returns:
        The counts, and the files that were left out.

    Raises:
        DataError: As `write_predictions`.
        ModelError: There is no network, or its files do not belong together.
    """
    model = load_model(model_folder(model_path))
    model.network.to(device)
    card = model.card
    head = Head(card.name, card.version, model.sha256, card.threshold, card.classes)
    return write_predictions(
        head,
        lambda path, name: _find(model, read_image(path, name, max_pixels=max_pixels)),
        images,
        out,
        keep_going=keep_going,
    )


def _find(model: InstanceModel, image: Image) -> Found:
    """What a network finds in an image, from its threshold on."""
    seen = colours(replace(image, radiometry=model.card.radiometry))
    objects = objects_of_any_size(model.network, seen, model.card.threshold, model.card.side)
    labels = label_map(objects)
    return Found.of_masks(objects, labels, overlay(image.grey(), edges(labels)))


def label_map(objects: Instances) -> np.ndarray:
    """Objects as one picture, uint16 `(H, W)`: 0 ground, k the k-th object; earlier ones lie over later ones."""
    labels = np.zeros(objects.size, np.uint16)
    for number in range(len(objects), 0, -1):
        labels[decode(objects.rles[number - 1])] = number
    return labels


def edges(labels: np.ndarray) -> np.ndarray:
    """The outermost pixels of each object of a label map, bool `(H, W)`: neighbours that touch stay apart."""
    low = ndimage.minimum_filter(labels, footprint=EIGHT_CONNECTED, mode="nearest")
    high = ndimage.maximum_filter(labels, footprint=EIGHT_CONNECTED, mode="nearest")
    return np.asarray((labels > 0) & ((low != labels) | (high != labels)))
