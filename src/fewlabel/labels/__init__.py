"""Pseudo-labels on disk."""
