"""Training: experiment, state, step, optimizer, loop, metrics, checkpoints."""
