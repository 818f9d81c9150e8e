"""Long work of the trainer, run as subprocesses."""
