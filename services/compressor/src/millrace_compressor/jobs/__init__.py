"""Long work of the compressor, run as subprocesses."""
