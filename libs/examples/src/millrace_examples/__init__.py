"""The formats of training files: how each is told from the others, checked and read.

The data service checks an upload with ``report.check``; a tuner's job reads the same file with
``reading.read``. Both follow the same rules and speak of a mistake in the same words.
"""
