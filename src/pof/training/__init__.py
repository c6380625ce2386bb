"""Training with any method: the loop, one step, the order of the data, selection, checkpoints."""
