"""What every tuning job does around its training, in order; what fails cheaply comes first."""

import os
from collections.abc import Callable
from typing import Any

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.checkpoint import Committed
from millrace_tuner.jobs.metrics import METRICS_NAME
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.suitability import require_suitable

_RESULT_METADATA = (
    "step",
    "train_loss",
    "trained_tokens",
    "training_examples",
    "heldout_examples",
    "heldout_source",
    "truncated_examples",
    "skipped_examples",
)


def perform(spec: Spec, reporter: Reporter, learn: Callable[[Cancellation], None]) -> None:
    """Report what is there, have ``learn`` train what is missing, and report the result."""
    cancellation = Cancellation()
    cancellation.listen()
    spec.output_directory.mkdir(parents=True, exist_ok=True)
    checkpoint.sweep(spec.output_directory)
    known = checkpoint.checkpoints(spec.output_directory, spec.digest)
    for committed in known:
        reporter.report("checkpoint", **checkpoint.report_fields(committed))
    if not (known and known[-1].metadata["final"]):
        verify_base(spec)
        keep_libraries_quiet()
        learn(cancellation)
        known = checkpoint.checkpoints(spec.output_directory, spec.digest)
    checkpoint.remove_states(spec.output_directory)
    reporter.report("result", **result_fields(spec, known[-1]))


def keep_libraries_quiet() -> None:
    """A job uses what lies on disk: no library may look for anything on a network, nor tell
    anybody that it runs. To be called before they are imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")


def verify_base(spec: Spec) -> None:
    """
    Raises:
        JobError: BASE_CHECKPOINT_INVALID, naming the first file that is wrong;
            BASE_MODEL_UNSUITABLE when the method cannot tune such a model.
    """
    try:
        manifest.verify(spec.base_checkpoint_path, spec.base_checkpoint_digest)
    except manifest.ManifestError as error:
        message = f"the base checkpoint is not what it was: {error}; restore it or tune another"
        raise JobError("BASE_CHECKPOINT_INVALID", message) from error
    require_suitable(spec)


def result_fields(spec: Spec, final: Committed) -> dict[str, Any]:
    """The fields of the job's ``result`` line, from what the final checkpoint says of itself."""
    metadata = final.metadata
    return {
        "checkpoint_path": str(final.path),
        "checkpoint_digest": final.digest,
        "metrics_path": str(spec.output_directory / METRICS_NAME),
        "valid": metadata["valid"],
        "base_valid": metadata["base_valid"],
        "parity": checkpoint.parity_of(metadata),
        **{name: metadata[name] for name in _RESULT_METADATA},
    }
