"""Jobs of the tuner, each a module of its own: ``python -m millrace_tuner.jobs.<verb>``."""
