"""The training loop, checkpoints, averages and losses."""
