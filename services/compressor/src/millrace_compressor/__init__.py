"""Checkpoints made fit for the hardware that serves them, measured, and judged."""
