"""Pre-training runs and their checkpoints."""
