"""The whole mesh on one machine: supervisor, NATS and Triton wrappers, and the demo."""
