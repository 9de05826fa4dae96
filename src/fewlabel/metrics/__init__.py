"""Scores: overlap (IoU, nIoU), targets (Pd, Fa, by area and by threshold), and both in one (hIoU)."""
