"""The tuner: supervised fine-tuning of models that exist, and the checkpoints it makes."""
