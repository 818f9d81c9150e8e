"""``python -m millrace_compressor.jobs.compress SPEC.json``: a checkpoint becomes an artifact.

Convert, inspect the bytes, measure, commit. Converted files are kept in the working directory
until the artifact is committed, so a job that is started again measures and does not convert.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from millrace_compressor.jobs import calibration, evaluate, parity, plain
from millrace_compressor.jobs.format import Conversion, Recipe, Runnable, Scored
from millrace_compressor.jobs.formats import format_of
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.manifest import ManifestError

PHASES = ("convert", "inspect", "measure", "commit")
QUALITY_FILE = "quality.json"
_REFERENCE = "openvino-fp32"


class Spec(BaseModel):
    """What to compress, for what, and where to put it.

    ``artifact_path`` is the directory that will hold the artifact; ``working_directory`` is the
    compression's own and is removed when it is done.
    """

    model_config = ConfigDict(extra="forbid")

    compression_id: str
    checkpoint_path: Path
    checkpoint_digest: str
    evaluation_path: Path
    evaluation_digest: str
    target: str
    recipe: Recipe = Recipe()
    gate: dict[str, float | None] = {}
    artifact_path: Path
    working_directory: Path
    threads: int = Field(2, ge=1)
    evaluation_tokens: int = Field(4096, ge=2)
    window_tokens: int = Field(512, ge=2)


def work(spec: Spec, reporter: Reporter) -> None:
    """Make the artifact and report ``result`` with its digest and measurements."""
    torch.set_num_threads(spec.threads)
    _verify(spec.checkpoint_path, spec.checkpoint_digest, "CHECKPOINT_INVALID")
    _verify(spec.evaluation_path, spec.evaluation_digest, "EVALUATION_DATA_INVALID")
    if _whole(spec.artifact_path) is None:
        manifest.remove_tree(spec.artifact_path)  # damaged, and nobody has heard of it yet
        _make(spec, reporter)
    made, digest = manifest.read(spec.artifact_path)
    manifest.remove_tree(spec.working_directory)
    reporter.report(
        "result",
        artifact_path=str(spec.artifact_path),
        artifact_digest=digest,
        size_bytes=made.size_bytes,
        measurements=made.metadata["measurements"],
    )


def _make(spec: Spec, reporter: Reporter) -> None:
    _say(reporter, "convert")
    converted = _converted(spec)
    _say(reporter, "inspect")
    shares = format_of(spec.target).inspect(converted)
    _say(reporter, "measure")
    measurements = {**measure(spec, converted), "weight_shares": dict(shares)}
    _say(reporter, "commit")
    _write_json(converted / QUALITY_FILE, measurements)
    metadata = {
        "target": spec.target,
        "recipe": spec.recipe.model_dump(),
        "checkpoint_digest": spec.checkpoint_digest,
        "measurements": measurements,
    }
    manifest.commit(converted, spec.artifact_path, "artifact", metadata)


def measure(spec: Spec, converted: Path) -> dict[str, Any]:
    """Everything the gate and the report want to know."""
    model = spec.checkpoint_path / "model"
    length = min(spec.window_tokens, _context_length(model))
    windows = evaluate.heldout_windows(spec.evaluation_path, length, spec.evaluation_tokens)
    original = evaluate.Original(model)
    made = format_of(spec.target)
    artifact = made.open(converted, spec.threads)
    return {
        **_parity(spec, converted, original, made.exact(converted, spec.threads)),
        **evaluate.compare(original, artifact, windows),
        **artifact.latency(windows[0]),
        "artifact_size_bytes": made.size_bytes(converted),
        "original_size_bytes": plain.size_bytes(model),
        "peak_memory_bytes": evaluate.peak_memory_bytes(),
    }


def _parity(spec: Spec, converted: Path, original: Scored, artifact: Runnable) -> dict[str, Any]:
    """The measurement ``parity``, of checkpoints that have probes."""

    def reexport() -> Scored:
        folder, reference = manifest.temporary_sibling(converted), format_of(_REFERENCE)
        reference.convert(_conversion(spec, _REFERENCE), folder)
        return reference.exact(folder, spec.threads)

    found = parity.certify(
        spec.checkpoint_path,
        converted,
        original,
        artifact,
        dtype=artifact.dtype,
        reexport=reexport,
    )
    return {} if found is None else {"parity": found}


def _converted(spec: Spec) -> Path:
    """The directory with the converted model, made by an earlier start of this job or now."""
    done = spec.working_directory / "converted"
    if _whole(done) is None:
        manifest.remove_tree(done)
        spec.working_directory.mkdir(parents=True, exist_ok=True)
        for abandoned in spec.working_directory.glob(f"{manifest.TEMPORARY_PREFIX}*"):
            manifest.remove_tree(abandoned)
        temporary = manifest.temporary_sibling(done)
        format_of(spec.target).convert(_conversion(spec, spec.target), temporary)
        manifest.commit(temporary, done, "converted", {"target": spec.target})
    return done


def _conversion(spec: Spec, target: str) -> Conversion:
    model = spec.checkpoint_path / "model"
    length = min(spec.window_tokens, _context_length(model))
    return Conversion(
        model=model,
        target=target,
        recipe=spec.recipe,
        calibration=lambda: calibration.windows(
            spec.evaluation_path, spec.recipe.calibration, length
        ),
        threads=spec.threads,
    )


def _whole(path: Path) -> str | None:
    """The digest of a committed directory that is as it was committed; else None."""
    try:
        _, digest = manifest.read(path)
        manifest.verify(path, digest)
    except ManifestError as error:
        if path.exists():
            print(f"made again: {error}", file=sys.stderr)
        return None
    return digest


def _context_length(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])


def _verify(path: Path, digest: str, reason: str) -> None:
    try:
        manifest.verify(path, digest)
    except ManifestError as error:
        raise JobError(reason, str(error)) from error


def _say(reporter: Reporter, phase: str) -> None:
    reporter.progress(phase, PHASES.index(phase), len(PHASES))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    jobs.run("compressor.compress", Spec, work, lambda spec: spec.working_directory)
