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

from millrace_compressor.jobs import (
    calibration,
    evaluate,
    golden,
    graphs,
    parity,
    plain,
    report,
    task,
)
from millrace_compressor.jobs.calibration import GENERIC, OWN, Sample
from millrace_compressor.jobs.format import Conversion, Recipe, Recovered, Runnable, Scored, Tokens
from millrace_compressor.jobs.formats import format_of
from millrace_compressor.jobs.graphs import Graphs
from millrace_compressor.jobs.task import Task
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.manifest import ManifestError

PHASES = ("convert", "inspect", "measure", "commit")
QUALITY_FILE = "quality.json"
CALIBRATION_FILE = "calibration.json"
_REFERENCE = "openvino-fp32"
_AUTO = "auto"


class Spec(BaseModel):
    """What to compress, for what, and where to put it.

    ``artifact_path`` is the directory that will hold the artifact; ``working_directory`` is the
    compression's own and is removed when it is done. For all compressions, ``originals_directory``
    keeps what was measured of checkpoints themselves, and ``graphs_directory`` what was traced.
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
    task: Task | None = None
    artifact_path: Path
    working_directory: Path
    originals_directory: Path | None = None
    graphs_directory: Path | None = None
    recovered_path: Path | None = None
    recovered_digest: str = ""
    recovery_job: str = ""
    threads: int = Field(2, ge=1)
    llm_compressor_python: Path | None = None
    evaluation_tokens: int = Field(4096, ge=2)
    window_tokens: int = Field(512, ge=2)


def work(spec: Spec, reporter: Reporter) -> None:
    """Make the artifact and report ``result`` with its digest and measurements."""
    torch.set_num_threads(spec.threads)
    _verify(spec.checkpoint_path, spec.checkpoint_digest, "CHECKPOINT_INVALID")
    _verify(spec.evaluation_path, spec.evaluation_digest, "EVALUATION_DATA_INVALID")
    if spec.recovered_path is not None:
        _verify(spec.recovered_path, spec.recovered_digest, "CHECKPOINT_INVALID")
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
    if spec.task is not None:  # what is wrong with it is said before anything is made
        task.questions(spec.task, spec.checkpoint_path / "model")
    if spec.target == _AUTO:
        from millrace_compressor.jobs import auto

        length = min(spec.window_tokens, evaluate.context_length(spec.checkpoint_path / "model"))
        found = auto.run(spec, reporter, auto.Work(_converted, measure, _whole, length))
        _commit(found.spec, reporter, found.folder, found.measurements)
        return
    _say(reporter, "convert")
    converted = _converted(spec)
    _say(reporter, "inspect")
    shares = format_of(spec.target).inspect(converted)
    _say(reporter, "measure")
    measurements = {**measure(spec, converted), "weight_shares": dict(shares)}
    _commit(spec, reporter, converted, measurements)


def _commit(spec: Spec, reporter: Reporter, made: Path, measurements: dict[str, Any]) -> None:
    """The folder ``made`` becomes the artifact."""
    _say(reporter, "commit")
    told = {
        "target": spec.target,
        "recipe": spec.recipe.model_dump(),
        "checkpoint_digest": spec.checkpoint_digest,
    }
    _write_json(made / QUALITY_FILE, {**told, "threads": spec.threads, **measurements})
    metadata = {**told, "measurements": measurements}
    manifest.commit(made, spec.artifact_path, "artifact", metadata)


def measure(spec: Spec, converted: Path) -> dict[str, Any]:
    """Everything the gate and the report want to know."""
    model = spec.checkpoint_path / "model"
    length = min(spec.window_tokens, evaluate.context_length(model))
    windows = evaluate.heldout_windows(spec.evaluation_path, length, spec.evaluation_tokens)
    made = format_of(spec.target)
    beside = report.original_speed(
        model,
        windows,
        shape=graphs.key_of(model, "original"),
        threads=spec.threads,
        folder=spec.originals_directory,
    )
    artifact, speed = report.artifact_speed(lambda: made.open(converted, spec.threads), windows)
    original = evaluate.Original(model)
    golden.write(converted, spec.checkpoint_path, windows, original)
    return {
        **beside,
        **speed,
        **_parity(spec, converted, original, made.exact(converted, spec.threads)),
        **evaluate.compare(original, artifact, windows),
        **_calibration(spec, converted, original, windows),
        **task.measured(spec, original, artifact),
        "artifact_size_bytes": made.size_bytes(converted),
        "original_size_bytes": plain.size_bytes(model),
        "peak_memory_bytes": evaluate.peak_memory_bytes(),
    }


def _calibration(spec: Spec, converted: Path, original: Scored, windows: Tokens) -> dict[str, Any]:
    """The measurement ``calibration``, of targets that are calibrated."""
    path = converted / CALIBRATION_FILE
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    if spec.recipe.calibration.compare and not record["note"]:
        source = GENERIC if record["source"] == OWN else OWN
        try:
            record["other"] = _other(spec, converted, source, original, windows)
        except JobError as error:
            if error.reason != "CALIBRATION_DATA_MISSING":
                raise
            record["note"] = f"nothing to compare with: {error}"
    return {"calibration": record}


def _other(
    spec: Spec, converted: Path, source: str, original: Scored, windows: Tokens
) -> dict[str, Any]:
    """How an artifact is that is calibrated on ``source``, and otherwise the same."""
    given = {**spec.recipe.calibration.model_dump(), "source": source}
    recipe = Recipe.model_validate({**spec.recipe.model_dump(), "calibration": given})
    folder = manifest.temporary_sibling(converted)
    found = _convert(spec, spec.target, recipe, folder)
    artifact = format_of(spec.target).open(folder, spec.threads)
    compared = evaluate.compare(original, artifact, windows)
    measured = {
        name: compared[name] for name in ("artifact_perplexity", "kl_divergence", "top1_agreement")
    }
    digest = "" if found is None else found.record()["digest"]
    return {"source": source, "digest": digest, **measured}


def _parity(spec: Spec, converted: Path, original: Scored, artifact: Runnable) -> dict[str, Any]:
    """The measurement ``parity``, of checkpoints that have probes."""

    def reexport() -> Scored:
        folder = manifest.temporary_sibling(converted)
        _convert(spec, _REFERENCE, Recipe(), folder)
        return format_of(_REFERENCE).exact(folder, spec.threads)

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
        sample = _convert(spec, spec.target, spec.recipe, temporary)
        if sample is not None:
            _write_json(temporary / CALIBRATION_FILE, sample.record())
        manifest.commit(temporary, done, "converted", {"target": spec.target})
    return done


def _convert(spec: Spec, target: str, recipe: Recipe, output: Path) -> Sample | None:
    """Write the artifact; what it was calibrated on, if it was."""
    model = spec.checkpoint_path / "model"
    length = min(spec.window_tokens, evaluate.context_length(model))
    used: list[Sample] = []

    def windows() -> Tokens:
        if not used:
            found = calibration.sample(spec.evaluation_path, model, recipe.calibration, length)
            used.append(found)
        return used[0].windows

    conversion = Conversion(
        model,
        target,
        recipe,
        windows,
        spec.threads,
        spec.llm_compressor_python,
        _recovered(spec),
        Graphs(spec.graphs_directory) if spec.graphs_directory else None,
    )
    format_of(target).convert(conversion, output)
    return used[0] if used else None


def _recovered(spec: Spec) -> Recovered | None:
    if spec.recovered_path is None:
        return None
    student = spec.working_directory / "student"
    return Recovered(spec.recovered_path, spec.recovered_digest, spec.recovery_job, student)


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
