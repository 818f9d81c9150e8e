"""Bounds what a home gathers: the oldest traces go when a mesh starts."""

from pathlib import Path

TRACES_LIMIT_BYTES = 512 * 1024 * 1024


def remove_oldest(directory: Path, limit_bytes: int = TRACES_LIMIT_BYTES) -> int:
    """Remove files, the longest unchanged first, until the rest fits; how many went."""
    files = sorted(directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    removed = 0
    for path in files:
        if total <= limit_bytes:
            break
        total -= path.stat().st_size
        path.unlink()
        removed += 1
    return removed
