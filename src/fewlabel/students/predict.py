"""What a student says about one image."""

import numpy as np
import torch
from torch import nn

from fewlabel.core.errors import DataError


def predict(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """Probability of "target" at every pixel of a whole image.

    Args:
        model: a student; its mode (training or not) is left as it was.
        image: float32 (H, W), standardised over the whole image.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        DataError: the image is not a non-empty plane.
    """
    if image.ndim != 2 or image.size == 0:
        raise DataError(f"a student takes one plane (H, W) of at least 1x1 pixels, got shape {image.shape}; pass grey")
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(image, np.float32)).to(device)[None, None]
            probabilities: np.ndarray = torch.sigmoid(model(images).float())[0, 0].cpu().numpy()
    finally:
        model.train(training)
    return probabilities
