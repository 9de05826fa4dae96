"""A student that gives boxes: a small D-FINE trained on the boxes of masks."""
