"""Train a small segmentation model from a few labels, many unlabelled images and SAM."""

__version__ = "0.1.0"
