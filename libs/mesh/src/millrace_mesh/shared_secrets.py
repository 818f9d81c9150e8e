"""The secrets that the processes of one mesh share; each is made once and kept."""

import secrets
from pathlib import Path

NAMES = ("internal-token", "triton-control-key")
_ENTROPY_BYTES = 32


def load_or_make(directory: Path) -> dict[str, str]:
    """Secret by name, each in a file of its own that only its owner may read."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {name: _load_or_make(directory / name) for name in NAMES}


def _load_or_make(path: Path) -> str:
    if not path.exists():
        temporary = path.with_name(f".{path.name}")
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_urlsafe(_ENTROPY_BYTES))
        temporary.rename(path)
    return path.read_text()
