"""The one check of what every metric is given: a predicted and a true mask of one image."""

import numpy as np

from fewlabel.core.errors import DataError


def check_pair(prediction: np.ndarray, target: np.ndarray) -> None:
    """Refuse anything but two bool masks `(H, W)` of the same, non-empty size.

    Probabilities, 0/255 images and resized masks would give plausible but wrong scores, so none is converted here.

    Args:
        prediction: Predicted mask.
        target: True mask.

    Raises:
        DataError: A type, a number of axes or a size is not as above.
    """
    for name, mask in (("predicted", prediction), ("true", target)):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise DataError(
                f"The {name} mask has type {mask.dtype} and shape {mask.shape}, expected bool (H, W); threshold it and"
                " pass one image at a time."
            )
    if prediction.shape != target.shape:
        raise DataError(
            f"The predicted mask is {prediction.shape[0]} x {prediction.shape[1]} but the true one is"
            f" {target.shape[0]} x {target.shape[1]} (rows x columns); score predictions at the size of the image."
        )
    if prediction.size == 0:
        raise DataError(f"The masks have shape {prediction.shape}, expected at least one pixel; check the image file.")
