"""What the quality report says beside the comparison of logits: speed, memory, calibration.

The report is the artifact's ``quality.json``: the fields of ``service.proto``'s Measurements.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from millrace_compressor.jobs import evaluate, plain
from millrace_compressor.jobs.format import Runnable, Tokens
from millrace_runtime import manifest

_KEPT_ORIGINALS = 256


def original_speed(
    model: Path, windows: Tokens, *, shape: str, threads: int, folder: Path | None
) -> dict[str, Any]:
    """The checkpoint itself through transformers: load time, speed under load, memory.

    Measured once on a machine for all checkpoints that differ in their weights' values alone, which
    make none of them quicker: what was found is kept in ``folder``.

    Args:
        shape: identifies what is the same of those checkpoints (``graphs.key_of``).
        folder: None: it is measured each time.
    """
    return kept(folder, [shape, threads, platform.node()], lambda: _original(model, windows))


def kept(
    folder: Path | None, key: Sequence[Any], find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What ``find`` found of originals once, JSON; ``key`` is all that it depends on.

    Args:
        folder: None: it is found each time.
    """
    if folder is None:
        return find()
    digest = manifest.sha256_bytes(json.dumps(key).encode())
    path = folder / f"{digest.removeprefix('sha256:')}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):  # not found yet, or the machine went down while it was kept
        found = find()
        _keep(path, found)
    return found


def _original(model: Path, windows: Tokens) -> dict[str, Any]:
    memory = evaluate.Memory()
    original = plain.Artifact(model)
    return {
        "original_load_seconds": original.load_seconds,
        "original_loads": [
            original.load(evaluate.prompts(windows, streams))
            for streams in (1, evaluate.LOAD_STREAMS)
        ],
        "original_memory_bytes": memory.peak_bytes(),
    }


def artifact_speed(
    open_artifact: Callable[[], Runnable], windows: Tokens
) -> tuple[Runnable, dict[str, Any]]:
    """The artifact, and how it is through the runtime that serves it."""
    memory = evaluate.Memory()
    artifact = open_artifact()
    alone = artifact.latency(windows[0])
    return artifact, {
        **alone,
        "artifact_loads": evaluate.loads(artifact, windows, alone),
        "artifact_memory_bytes": memory.peak_bytes(),
    }


def _keep(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(found))
    temporary.replace(path)
    for old in sorted(path.parent.glob("*.json"), key=_modified)[:-_KEPT_ORIGINALS]:
        old.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another compression has removed it
        return 0.0
