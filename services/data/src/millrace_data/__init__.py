"""The data service: files, datasets and tokenizers."""
