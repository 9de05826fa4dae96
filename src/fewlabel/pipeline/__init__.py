"""Stages, their fingerprints, and the run folder that holds their results."""
