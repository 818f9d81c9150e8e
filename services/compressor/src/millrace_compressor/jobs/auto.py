"""The target ``auto``: candidates are made and measured until ``search`` has one to ship.

Each candidate has a folder in the working directory, so that a job that is started again goes on:

converted   what was made of the checkpoint; kept while it may still be shipped
screened    what was found on a part of the held-out tokens (a manifest, and no files)
measured    the artifact with its golden answers, and in the manifest what was measured in full
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace_compressor import gate
from millrace_compressor.domain import GatePolicy, Measurements
from millrace_compressor.jobs import (
    calibration,
    evaluate,
    hardware,
    plain,
    search,
    sensitivity,
    task,
)
from millrace_compressor.jobs import search_record as record
from millrace_compressor.jobs.format import Recipe, Tokens
from millrace_compressor.jobs.formats import format_of
from millrace_compressor.jobs.hardware import Hardware
from millrace_compressor.jobs.search import Candidate, Step, Trial
from millrace_compressor.rows import measurements_of
from millrace_runtime import manifest, storage
from millrace_runtime.jobs import JobError, Reporter

if TYPE_CHECKING:
    from millrace_compressor.jobs.compress import Spec

PHASE = "search"
_SCREENED_SHARE = 4  # one of so many held-out tokens
_SENSITIVITY_WINDOWS = 4  # a forward pass a layer is made of these
# Faults of what is compressed, or of what judges: every candidate would have them.
_FINAL_REASONS = frozenset({"CHECKPOINT_INVALID", "EVALUATION_DATA_MISSING", task.INVALID})


@dataclass(frozen=True)
class Found:
    """What is shipped: as ``spec`` has it, in ``folder``, measured in full."""

    spec: "Spec"
    folder: Path
    measurements: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """How any compression is done (``compress.py``).

    Attributes:
        convert: the committed folder with what is made of the checkpoint, once.
        measure: everything, with the golden answers written to the folder.
        whole: the digest of a committed folder; None: it is absent or damaged.
    """

    convert: Callable[["Spec"], Path]
    measure: Callable[["Spec", Path], dict[str, Any]]
    whole: Callable[[Path], str | None]
    length: int


def run(spec: "Spec", reporter: Reporter, work: Work, machine: Hardware | None = None) -> Found:
    """Search, and measure what is shipped.

    Raises:
        JobError: that of the first candidate, when nothing could be made of the checkpoint.
    """
    return _Search(spec, reporter, work, machine or hardware.this_machine()).run()


class _Search:
    def __init__(self, spec: "Spec", reporter: Reporter, work: Work, machine: Hardware) -> None:
        self._spec = spec
        self._reporter = reporter
        self._work = work
        self._machine = machine
        self._model = spec.checkpoint_path / "model"
        self._policy = GatePolicy(**spec.gate)  # type: ignore[arg-type]
        inputs = sensitivity.layer_inputs(self._model)
        self._space = search.space_of(machine, list(inputs.values()))
        self._trials: dict[Candidate, Trial] = {}
        self._found: dict[Candidate, dict[str, Any]] = {}
        self._steps = 0
        tokens = max(spec.evaluation_tokens // _SCREENED_SHARE, 2)
        self._windows = evaluate.heldout_windows(spec.evaluation_path, work.length, tokens)

    def run(self) -> Found:
        while step := search.following(self._space, self._trials):
            self._trials[step.candidate] = self._full(step) if step.is_full else self._screen(step)
            self._forget()
            self._say(step)
        chosen = search.shipped(self._trials)
        if chosen is None:
            first = next(iter(self._found.values()))
            raise JobError(first["reason"], first["error"])
        measured = {
            **self._found[chosen],
            "search": record.of(self._trials, chosen, self._found, self._machine),
        }
        return Found(self._spec_of(chosen), self._folder(chosen) / "measured", measured)

    def _screen(self, step: Step) -> Trial:
        """On some of the tokens, as far as the gate goes; what was found once is kept."""
        folder = self._folder(step.candidate) / "screened"
        found = self._kept(folder)
        if found is None:
            manifest.remove_tree(folder)
            found = {**self._screened(step.candidate), "candidate": str(step.candidate)}
            manifest.commit(manifest.temporary_sibling(folder), folder, "screened", found)
        return self._trial(step.candidate, found, is_full=False)

    def _screened(self, candidate: Candidate) -> dict[str, Any]:
        try:
            spec = self._spec_of(candidate)
            converted = self._work.convert(spec)
            made = format_of(candidate.target)
            shares = dict(made.inspect(converted))
        except (JobError, RuntimeError) as error:
            reason = error.reason if isinstance(error, JobError) else "CONVERSION_FAILED"
            if reason in _FINAL_REASONS or storage.is_full(self._spec.working_directory):
                raise
            return {"reason": reason, "error": f"{reason}: {error}"}
        artifact = made.open(converted, spec.threads)
        original = evaluate.Original(self._model)
        # Of few rows each weighs much: all are asked, where the gate judges the answers.
        judged = gate.judges_task(self._policy)
        return {
            **artifact.latency(self._windows[0]),
            **evaluate.compare(original, artifact, self._windows),
            **(task.measured(spec, original, artifact) if judged else {}),
            "artifact_size_bytes": made.size_bytes(converted),
            "original_size_bytes": plain.size_bytes(self._model),
            "weight_shares": shares,
        }

    def _full(self, step: Step) -> Trial:
        """On all tokens, as any artifact is measured."""
        folder = self._folder(step.candidate)
        found = self._kept(folder / "measured")
        if found is None:
            manifest.remove_tree(folder / "measured")
            spec = self._spec_of(step.candidate)
            converted = self._work.convert(spec)
            shares = dict(format_of(spec.target).inspect(converted))
            found = {**self._work.measure(spec, converted), "weight_shares": shares}
            manifest.commit(converted, folder / "measured", "measured", found)
        return self._trial(step.candidate, found, is_full=True)

    def _kept(self, folder: Path) -> dict[str, Any] | None:
        if self._work.whole(folder) is None:
            return None
        return manifest.read(folder)[0].metadata

    def _trial(self, candidate: Candidate, found: dict[str, Any], *, is_full: bool) -> Trial:
        self._found[candidate] = found
        if found.get("error"):
            return Trial(error=found["error"])
        measured = measurements_of(found)
        return Trial(
            size_bytes=measured.artifact_size_bytes,
            latency_seconds=gate.latency_seconds(measured),
            perplexity_increase=gate.perplexity_increase(measured),
            task_score=gate.task_score(measured),
            is_full=is_full,
            **_kept_constraints(measured, self._policy),
        )

    def _forget(self) -> None:
        """Remove what was made of candidates that will hardly be shipped: models are large."""
        favourite = search.favourite(self._trials)
        for candidate in self._trials:
            if candidate != favourite:
                manifest.remove_tree(self._folder(candidate) / "converted")

    def _say(self, step: Step) -> None:
        trial = self._trials[step.candidate]
        told = {
            "size_bytes": trial.size_bytes,
            "latency_seconds": trial.latency_seconds,
            "perplexity_increase": trial.perplexity_increase,
            "passes": trial.passes,
        }
        metrics = {name: float(value) for name, value in told.items() if value is not None}
        self._steps += 1
        total = max(self._space.most_trials + 1, self._steps)
        self._reporter.progress(PHASE, self._steps, total, metrics)

    def _folder(self, candidate: Candidate) -> Path:
        key = hashlib.sha256(str(candidate).encode()).hexdigest()[:16]
        return self._spec.working_directory / "trials" / key

    def _spec_of(self, candidate: Candidate) -> "Spec":
        changes = {
            "target": candidate.target,
            "recipe": self._recipe_of(candidate),
            "working_directory": self._folder(candidate),
            # What is traced for one candidate serves all.
            "graphs_directory": self._spec.graphs_directory
            or self._spec.working_directory / "graphs",
        }
        return self._spec.model_copy(update=changes)

    def _recipe_of(self, candidate: Candidate) -> Recipe:
        given: dict[str, Any] = {
            "group_size": candidate.group_size,
            "weight_method": candidate.weight_method,
        }
        if candidate.raised:
            given["layer_bits"] = dict.fromkeys(self._most_sensitive(candidate.raised), 8)
        return self._spec.recipe.model_copy(update=given)

    def _most_sensitive(self, count: int) -> list[str]:
        folder = self._spec.working_directory / "sensitivity"
        found = self._kept(folder)
        if found is None:
            manifest.remove_tree(folder)
            temporary = manifest.temporary_sibling(folder)
            found = sensitivity.sensitivity(self._model, self._calibration_windows())
            manifest.commit(temporary, folder, "sensitivity", dict(found))
        return sorted(found, key=lambda name: (-found[name], name))[:count]

    def _calibration_windows(self) -> Tokens:
        few = self._spec.recipe.calibration.model_copy(update={"samples": _SENSITIVITY_WINDOWS})
        path = self._spec.evaluation_path
        return calibration.sample(path, self._model, few, self._work.length).windows


def _kept_constraints(measured: Measurements, policy: GatePolicy) -> Mapping[str, Any]:
    """Which parts of the gate an artifact passes: the gate's own word on each."""
    blank = GatePolicy()
    quality = replace(policy, max_size_ratio=None, max_latency_seconds=None, max_size_bytes=None)
    size = replace(
        blank, max_size_ratio=policy.max_size_ratio, max_size_bytes=policy.max_size_bytes
    )
    latency = replace(blank, max_latency_seconds=policy.max_latency_seconds)
    without_parity = replace(measured, parity=None)
    return {
        "keeps_quality": gate.decide(measured, quality).passed,
        "keeps_size": gate.decide(without_parity, size).passed,
        "keeps_latency": gate.decide(without_parity, latency).passed,
    }
