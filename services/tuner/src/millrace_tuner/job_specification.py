"""What a job's subprocess is told (``jobs.specification.Spec``), every content verified."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from millrace_runtime.content import ContentStore
from millrace_tuner import hyperparameters
from millrace_tuner.domain import Content, FileReference, Job

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
        "seed": plan.seed,
        "threads": threads,
        "mlflow_tracking_uri": mlflow_tracking_uri,
    }


def _directory(store: ContentStore, field: str, content: Content | None) -> dict[str, str]:
    if content is None:
        return {}
    path = store.directory(content.uri, content.digest)
    return {f"{field}_path": str(path), f"{field}_digest": content.digest}


def _file(store: ContentStore, field: str, file: FileReference | None) -> dict[str, str]:
    if file is None:
        return {}
    path = store.file(file.content.uri, file.content.digest)
    return {f"{field}_path": str(path), f"{field}_sha256": file.content.digest}
