"""Jobs played again: what a real job wrote and said, in a second instead of ten.

Crash points in the services are many, and seconds of training tell nothing new about them. So a
mesh with ``MILLRACE_CHAOS_REPLAY_DIRECTORY`` runs each kind of heavy job once for real and keeps
its lines; from then on it starts ``tests.chaos.replay.<stage>`` in its place, which commits the
same content and says the same, through the same contract (``millrace_runtime.jobs``).
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from millrace_runtime import manifest

DIRECTORY_VARIABLE = "MILLRACE_CHAOS_REPLAY_DIRECTORY"
STAGES = {
    "millrace_trainer.jobs.launch": "trainer",
    "millrace_compressor.jobs.compress": "compressor",
}
# Long enough for a lease to be renewed in mid-work now and then.
_LINE_SECONDS = 0.1

RunJob = Callable[..., Any]


class Spec(BaseModel):
    """The real job's specification, and where the kept lines are."""

    model_config = ConfigDict(extra="allow")

    replayed_lines: Path


def around(run_job: RunJob, directory: Path) -> RunJob:
    """``run_job`` that keeps what heavy jobs say the first time, and replays it afterwards."""

    def run(
        module: str,
        spec: dict[str, Any],
        scratch: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
        **more: Any,
    ) -> Any:
        stage = STAGES.get(module)
        if stage is None:
            return run_job(module, spec, scratch, on_message, stop, **more)
        kept = directory / f"{stage}.jsonl"
        if kept.exists():
            replayed = {**spec, "replayed_lines": str(kept)}
            return run_job(f"tests.chaos.replay.{stage}", replayed, scratch, on_message, stop)
        return _keep(run_job, kept, module, spec, scratch, on_message, stop)

    return run


def lines(spec: Spec) -> Iterator[dict[str, Any]]:
    """What the real job said, at a walking pace."""
    for line in spec.replayed_lines.read_text().splitlines():
        time.sleep(_LINE_SECONDS)
        yield json.loads(line)


def commit_copy(original: Path, target: Path, replayed_for: str, **made_from: str) -> str:
    """Commit the content of ``original`` as ``target``'s, as new work; return its digest.

    ``made_from``: what its metadata, and so its signature, names as its origin.
    """
    if (target / manifest.MANIFEST_NAME).exists():
        return manifest.read(target)[1]
    temporary = manifest.temporary_sibling(target)
    shutil.copytree(original, temporary, dirs_exist_ok=True)
    (temporary / manifest.MANIFEST_NAME).unlink()
    (temporary / manifest.SIGNATURE_NAME).unlink(missing_ok=True)
    made, _ = manifest.read(original)
    metadata = {**made.metadata, "replayed_for": replayed_for, **made_from}
    return manifest.commit(temporary, target, made.kind, metadata)


def _keep(
    run_job: RunJob,
    kept: Path,
    module: str,
    spec: dict[str, Any],
    scratch: Path,
    on_message: Callable[[dict[str, Any]], None],
    stop: threading.Event,
) -> Any:
    said: list[dict[str, Any]] = []

    def note(message: dict[str, Any]) -> None:
        said.append(message)
        on_message(message)

    outcome = run_job(module, spec, scratch, note, stop)
    if fields := getattr(outcome, "fields", None):
        said.append({"kind": "result", **fields})
        temporary = kept.with_suffix(".new")
        temporary.write_text("".join(json.dumps(message) + "\n" for message in said))
        temporary.rename(kept)
    return outcome
