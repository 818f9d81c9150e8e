"""What a job's subprocess is told (``jobs.specification.Spec``), every content verified."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from millrace_runtime import manifest
from millrace_runtime.content import ContentStore
from millrace_runtime.manifest import ManifestError
from millrace_tuner import hyperparameters
from millrace_tuner.domain import Content, FileReference, Job, Plan

MODULES = {
    "supervised": "millrace_tuner.jobs.supervised",
    "dpo": "millrace_tuner.jobs.preference",
    "kto": "millrace_tuner.jobs.preference",
    "orpo": "millrace_tuner.jobs.preference",
    "reward": "millrace_tuner.jobs.reward",
    "reinforcement": "millrace_tuner.jobs.reinforcement",
    "ppo": "millrace_tuner.jobs.ppo",
    "distillation": "millrace_tuner.jobs.distillation",
    "pretraining": "millrace_tuner.jobs.pretraining",
    "classification": "millrace_tuner.jobs.classification",
    "sequence": "millrace_tuner.jobs.sequence",
}
"""The module that trains by each method."""

_SWEEP_MODULE = "millrace_tuner.jobs.sweep"


def module_of(plan: Plan) -> str:
    """The module that does what a job is to do."""
    return _SWEEP_MODULE if plan.sweep is not None else MODULES[plan.method.kind]


def specification(
    job: Job,
    content: ContentStore,
    output_directory: Path,
    *,
    threads: int,
    mlflow_tracking_uri: str | None,
) -> dict[str, Any]:
    """
    Raises:
        ManifestError, ContentOutsideRoot, OSError: a content is not what it was.
    """
    plan = job.plan
    rate = hyperparameters.learning_rate(plan.method, plan.adapter, plan.hyperparameters)
    companion = None if plan.companion is None else plan.companion.checkpoint
    return {
        "job": job.id,
        "tenant": job.tenant,
        "model": job.tuned_model,
        "base_version": f"{plan.base.model}@{plan.base.number}",
        **_directory(content, "base_checkpoint", plan.base.checkpoint),
        **_directory(content, "base_evaluation", plan.base.evaluation),
        **_directory(content, "companion", companion),
        **_file(content, "training_file", plan.training_file),
        **_file(content, "validation_file", plan.validation_file),
        "output_directory": str(output_directory),
        "method": asdict(plan.method),
        "hyperparameters": asdict(plan.hyperparameters),
        "learning_rate": rate,
        "adapter": asdict(plan.adapter),
        "sweep": None if plan.sweep is None else asdict(plan.sweep),
        "seed": plan.seed,
        "threads": threads,
        "mlflow_tracking_uri": mlflow_tracking_uri,
        "integration": None if plan.integration is None else asdict(plan.integration),
        "prompt": None if plan.prompt is None else asdict(plan.prompt),
    }


def _directory(store: ContentStore, field: str, content: Content | None) -> dict[str, str]:
    if content is None:
        return {}
    path = store.directory(content.uri, content.digest)
    return {f"{field}_path": str(path), f"{field}_digest": content.digest}


def _file(store: ContentStore, field: str, file: FileReference | None) -> dict[str, str]:
    if file is None:
        return {}
    if file.member is not None:
        path, digest = _member(store, file.content, file.member)
    else:
        path, digest = store.file(file.content.uri, file.content.digest), file.content.digest
    return {f"{field}_path": str(path), f"{field}_sha256": digest}


def _member(store: ContentStore, content: Content, name: str) -> tuple[Path, str]:
    """The file with a directory's examples, and the digest that its manifest has for it.

    Raises:
        ManifestError: as ``specification``; also where there is no such file.
    """
    directory = store.directory(content.uri, content.digest)
    found, _ = manifest.read(directory)
    digests = {entry.path: entry.sha256 for entry in found.files}
    if name not in digests:
        raise ManifestError(f"{directory} holds no {name}")
    return directory / name, digests[name]
