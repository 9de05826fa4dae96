"""Scores: overlap (IoU, nIoU) and targets (Pd, Fa)."""
