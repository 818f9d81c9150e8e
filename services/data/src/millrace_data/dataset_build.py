"""The builder: a worker that turns a queued dataset into a committed one, in a subprocess."""

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import Gauge, Histogram

from millrace_data.app import Bytes, Files
from millrace_data.domain import (
    BuiltDataset,
    Content,
    Dataset,
    ExampleSet,
    Failure,
    File,
    FileSet,
    Progress,
    Recipe,
    WorkState,
    may_retry,
    utc_now,
)
from millrace_runtime import manifest, storage, telemetry, work
from millrace_runtime.content import ContentStore
from millrace_runtime.errors import FailedPrecondition
from millrace_runtime.leases import Lease
from millrace_runtime.work import JobFailure, JobOutcome, JobResult

JOB_MODULE = "millrace_data.jobs.build_dataset"
EXAMPLES_MODULE = "millrace_data.jobs.build_examples"
REMAINS_GRACE = timedelta(minutes=1)
_FOLDER = "datasets"

_SECONDS = Histogram(
    "millrace_dataset_build_duration_seconds",
    "Time from a build's start to its end.",
    ["outcome"],
    buckets=(1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280),
)
_LATENCY_SECONDS = Histogram(
    "millrace_dataset_start_latency_seconds", "Time from CreateDataset to its first build."
)
_COUNT = Gauge("millrace_dataset_work_count", "Datasets, by state.", ["state"])

RunJob = Callable[
    [str, dict[str, Any], Path, Callable[[dict[str, Any]], None], threading.Event], JobOutcome
]


class BuildCrashed(Exception):
    """A build ended in a way that is not its user's fault; its lease runs out, and it is tried
    again."""


class Builds(Protocol):
    """Fenced writes to the rows of datasets (``store.DatasetStore``)."""

    def leased(self, lease: Lease) -> Dataset: ...
    def start(self, lease: Lease) -> Dataset: ...
    def record_progress(self, lease: Lease, progress: Progress) -> None: ...
    def count_attempt(self, lease: Lease) -> int: ...
    def put_off(self, lease: Lease, failure: Failure, wait: timedelta) -> None: ...
    def succeed(self, lease: Lease, built: BuiltDataset) -> Dataset: ...
    def fail(self, lease: Lease, failure: Failure) -> Dataset: ...
    def count_by_state(self) -> dict[str, int]: ...
    def states(self, ids: Sequence[str]) -> dict[str, tuple[WorkState, datetime]]: ...


class DatasetBuilder:
    """``perform`` is what the worker does for each dataset that it claims."""

    def __init__(
        self,
        datasets: Builds,
        files: Files,
        stored: Bytes,
        content: ContentStore,
        *,
        scratch: Path,
        threads: int,
        ring: Callable[[], None],
        run_job: RunJob = work.run_job,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._datasets = datasets
        self._files = files
        self._bytes = stored
        self._content = content
        self._scratch = scratch
        self._threads = threads
        self._ring = ring
        self._run_job = run_job
        self._now = now

    def perform(self, lease: Lease, stop: threading.Event) -> None:
        """Build the dataset of ``lease``.

        Raises:
            LeaseLost: it was taken over or cancelled meanwhile.
            BuildCrashed: it is to be tried again.
        """
        dataset = self._datasets.leased(lease)
        if dataset.state == WorkState.QUEUED:
            _LATENCY_SECONDS.observe((self._now() - dataset.create_time).total_seconds())
        self._datasets.start(lease)
        started = self._now()
        attributes: dict[str, str | int | float | bool] = {
            "millrace.dataset": dataset.name,
            "millrace.epoch": lease.epoch,
        }
        with telemetry.span(
            "data build_dataset", traceparent=dataset.traceparent, attributes=attributes
        ):
            outcome = self._build(lease, dataset, stop)
            seconds = (self._now() - started).total_seconds()
            _SECONDS.labels(type(outcome).__name__).observe(seconds)
            if isinstance(outcome, JobResult):
                self._succeed(lease, outcome.fields)
            elif isinstance(outcome, JobFailure):
                self._fail(lease, Failure(outcome.reason, outcome.message))

    def _build(self, lease: Lease, dataset: Dataset, stop: threading.Event) -> JobOutcome:
        def on_message(message: dict[str, Any]) -> None:
            if message["kind"] == "progress":
                self._datasets.record_progress(lease, progress_of(message))

        try:
            source = self._source(dataset)
        except FailedPrecondition as error:
            return JobFailure(error.reason, str(error))
        except OSError as error:
            return work.content_failure(error)
        output = self._content.working_path(f"{_FOLDER}/{dataset.id}")
        spec = {"dataset_id": dataset.id, "output_path": str(output)}
        if isinstance(dataset.source, ExampleSet):
            module, more = EXAMPLES_MODULE, {"files": source["files"]}
        else:
            recipe = recipe_for_job(dataset.recipe)
            module, more = (
                JOB_MODULE,
                {"source": source, "recipe": recipe, "threads": self._threads},
            )
        return self._run_job(module, {**spec, **more}, self._scratch / dataset.id, on_message, stop)

    def _source(self, dataset: Dataset) -> dict[str, Any]:
        """The source in the job's terms, every file of it verified.

        Raises:
            FailedPrecondition: FILE_NOT_FOUND, CONTENT_DAMAGED.
        """
        if not isinstance(dataset.source, FileSet | ExampleSet):
            return {"kind": "standard_library"}
        inputs = []
        for id in dataset.source.file_ids:
            file = self._files.get(dataset.tenant, id)
            if file is None:
                raise FailedPrecondition(
                    f"file {id} was deleted before the dataset was built",
                    reason="FILE_NOT_FOUND",
                )
            inputs.append({"path": str(self._verified(file)), "name": file.filename})
        return {"kind": "files", "files": inputs}

    def _verified(self, file: File) -> Path:
        try:
            return self._bytes.open(file.content)
        except FailedPrecondition as error:
            message = f"{file.filename} ({file.id}): {error}"
            raise FailedPrecondition(message, reason=error.reason) from error

    def _succeed(self, lease: Lease, result: Mapping[str, Any]) -> None:
        uri = self._content.publish(Path(result["path"]))
        self._datasets.succeed(lease, built_dataset(result, uri))
        self._ring()

    def _fail(self, lease: Lease, failure: Failure) -> None:
        if failure.reason in storage.REASONS:
            self._datasets.put_off(lease, failure, storage.RETRY_WAIT)
            return
        attempts = self._datasets.count_attempt(lease)
        if may_retry(failure, attempts):
            raise BuildCrashed(f"{lease.id}: {failure.reason}: {failure.message}")
        self._datasets.fail(lease, failure)
        self._ring()

    def reconcile(self) -> None:
        """Remove what builds that failed or were cancelled left behind; count the datasets."""
        counts = self._datasets.count_by_state()
        for state in WorkState:
            _COUNT.labels(state).set(counts.get(state, 0))
        folder = self._content.working_path(f"{_FOLDER}/any").parent
        remains = {path: dataset_id_of(path.name) for path in folder.iterdir()}
        states = self._datasets.states(sorted(set(remains.values())))
        before = self._now() - REMAINS_GRACE  # a job that was told to stop may still be writing
        for path, id in remains.items():
            state, changed = states.get(id, (WorkState.QUEUED, before))
            if state in (WorkState.FAILED, WorkState.CANCELLED) and changed < before:
                manifest.remove_tree(path)


def dataset_id_of(folder_name: str) -> str:
    """The dataset that a folder belongs to: its own name, or ``.tmp-<name>-<unique>``."""
    if not folder_name.startswith(manifest.TEMPORARY_PREFIX):
        return folder_name
    return folder_name.removeprefix(manifest.TEMPORARY_PREFIX).rpartition("-")[0]


def progress_of(message: Mapping[str, Any]) -> Progress:
    """A job's ``progress`` line."""
    return Progress(message["phase"], message["completed"], message["total"], message["metrics"])


def recipe_for_job(recipe: Recipe) -> dict[str, Any]:
    """The recipe in the job's terms; what it does not say is the job's default."""
    return {
        "vocabulary_size": recipe.vocabulary_size,
        "heldout_fraction": recipe.heldout_fraction,
        "near_duplicate_threshold": recipe.near_duplicate_threshold,
        "maximum_bytes": recipe.maximum_bytes or None,
        "seed": recipe.seed,
    }


def built_dataset(result: Mapping[str, Any], uri: str) -> BuiltDataset:
    """A job's ``result`` line."""
    metadata = result["metadata"]
    counts = metadata["documents"]
    if "estimated_tokens" in metadata:
        return BuiltDataset(
            content=Content(uri, result["digest"], result["size_bytes"]),
            tokenizer_digest="",
            train_tokens=metadata["estimated_tokens"],
            heldout_tokens=0,
            documents=counts,
        )
    return BuiltDataset(
        content=Content(uri, result["digest"], result["size_bytes"]),
        tokenizer_digest=metadata["tokenizer_digest"],
        train_tokens=metadata["train_tokens"],
        heldout_tokens=metadata["heldout_tokens"],
        documents={
            "read": counts["read"],
            "exact_duplicates": counts["exact_duplicates"],
            "near_duplicates": counts["near_duplicates"],
            "filtered": sum(counts["filtered"].values()),
            "kept_train": counts["kept_train"],
            "kept_heldout": counts["kept_heldout"],
        },
    )
