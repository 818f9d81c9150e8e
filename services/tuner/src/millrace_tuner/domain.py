"""Tuning jobs, their checkpoints and events, and what a step of a job brings about (``Change``).

WrongState   a step was asked for that the job's state does not allow
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from millrace_tuner import methods
from millrace_tuner.methods import Adapter, Hyperparameters, Method
from millrace_tuner.prompt import Prompt
from millrace_tuner.sweep import Sweep


class WrongState(Exception):
    """The job's state does not allow this; the message says which states do."""


class JobState(StrEnum):
    """As ``millrace.lifecycle.v1.WorkState``."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


FINISHED = frozenset((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED))


@dataclass(frozen=True)
class Content:
    """A directory or file in the shared store; ``digest`` is ``sha256:`` + hex."""

    uri: str
    digest: str
    size_bytes: int


DATASET_FILE = "train.jsonl"
"""What a dataset's directory holds its examples in."""
WINDOWS_FILE = "windows.npy"
"""What the directory of a pruned model holds its token windows in; shape (windows, tokens)."""


@dataclass(frozen=True)
class FileReference:
    """A file of the data service, or a dataset of examples, as it was when the job was made; or
    what a compression has pruned, with the windows that it learns from."""

    name: str
    content: Content
    example_count: int

    @property
    def is_dataset(self) -> bool:
        """Whether its content is a directory (``DATASET_FILE``)."""
        return self._kind == "datasets"

    @property
    def is_pruned(self) -> bool:
        """Whether its content is a directory (``WINDOWS_FILE``) that a compression has made."""
        return self._kind == "compressions"

    @property
    def member(self) -> str | None:
        """Where in its content the examples are; None: it is the file itself."""
        if self.is_dataset:
            return DATASET_FILE
        return WINDOWS_FILE if self.is_pruned else None

    @property
    def _kind(self) -> str:
        return self.name.split("/")[2]


@dataclass(frozen=True)
class BaseVersion:
    """The version that is tuned: ``tenants/{tenant}/models/{model}/versions/{number}``.

    ``evaluation`` is the directory of the held-out tokens that its checkpoint was judged by.
    """

    name: str
    model: str
    number: int
    checkpoint: Content
    evaluation: Content | None = None


@dataclass(frozen=True)
class Companion:
    """Another model that a method needs: a teacher, a reward model."""

    name: str
    checkpoint: Content


@dataclass(frozen=True)
class Integration:
    """A run in MLflow that the metrics go to.

    Attributes:
        type: as it was asked for: "mlflow", or "wandb", whose fields say the same.
        experiment: empty: named after the tuned model.
        run_name: empty: named after the job.
    """

    type: str
    experiment: str = ""
    run_name: str = ""
    tags: tuple[str, ...] = ()
    entity: str = ""


@dataclass(frozen=True)
class Plan:
    """What a job is to do, every "auto" resolved. Fixed when it is made.

    ``judges``: the versions that a grader asks, as far as they are of this mesh.
    """

    base_model: str
    base: BaseVersion
    training_file: FileReference
    validation_file: FileReference | None
    suffix: str
    seed: int
    method: Method
    hyperparameters: Hyperparameters
    adapter: Adapter
    companion: Companion | None = None
    sweep: Sweep | None = None
    integration: Integration | None = None
    prompt: Prompt | None = None
    judges: tuple[str, ...] = ()

    @property
    def companions(self) -> tuple[str, ...]:
        """Names of all models that it learns from beside its base."""
        return self.judges if self.companion is None else (self.companion.name, *self.judges)

    @property
    def is_served(self) -> bool:
        """Whether what the job makes is compressed and rolled out."""
        return not self.is_recovery and methods.is_served(self.method, self.adapter)

    @property
    def is_recovery(self) -> bool:
        """Whether a compression waits for what the job makes."""
        return self.training_file.is_pruned


@dataclass(frozen=True)
class Progress:
    """How far a job has come; ``completed`` and ``total`` in the phase's own unit."""

    phase: str = ""
    completed: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a job failed: an UPPER_SNAKE reason, and a message its user can act on."""

    reason: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job's final checkpoint: it serves (``failure`` is None), or it cannot."""

    failure: Failure | None = None


@dataclass(frozen=True)
class Job:
    """One tuning of one model.

    Attributes:
        validate_time: when its files were found to be what its method needs.
        trained_time: when training ended and the road to serving began.
        outcome: how that road ended; it may be known before ``trained_time`` is recorded.
        result_file: what was measured at each step, a file of the data service.
        trials_file: the trials of a sweep, one more.
        attempts: times in a row that training has ended in a way that was not its user's fault.
    """

    tenant: str
    id: str
    plan: Plan
    tuned_model: str
    create_time: datetime
    update_time: datetime
    state: JobState = JobState.QUEUED
    progress: Progress = Progress()
    failure: Failure | None = None
    outcome: Outcome | None = None
    start_time: datetime | None = None
    validate_time: datetime | None = None
    trained_time: datetime | None = None
    finish_time: datetime | None = None
    trained_tokens: int = 0
    result_file: str = ""
    trials_file: str = ""
    attempts: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    traceparent: str = ""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/jobs/{self.id}"

    @property
    def estimated_finish_time(self) -> datetime | None:
        """When training will have ended, as the job last estimated it."""
        seconds = self.progress.metrics.get("remaining_seconds")
        if self.state != JobState.RUNNING or seconds is None or self.trained_time is not None:
            return None
        return self.update_time + timedelta(seconds=seconds)

    @property
    def is_training(self) -> bool:
        """Whether there is training left to do, by a worker or once one comes."""
        return self.state in (JobState.QUEUED, JobState.RUNNING) and self.trained_time is None


@dataclass(frozen=True)
class Checkpoint:
    """What a job had learned at one step. Immutable.

    Attributes:
        valid_loss: in nats a learned token; None where the method measures no loss.
        metrics: all that was measured on the held-out examples, by its name in the result file.
        served: it is compressed and served; what no engine runs, and what is learned for another
            stage, is not.
    """

    tenant: str
    job: str
    id: str
    model: str
    step: int
    train_loss: float
    valid_loss: float | None
    trained_tokens: int
    final: bool
    content: Content
    base_checkpoint_digest: str
    training_file_digest: str
    create_time: datetime
    metrics: Mapping[str, float] = field(default_factory=dict)
    served: bool = True

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/jobs/{self.job}/checkpoints/{self.id}"


@dataclass(frozen=True)
class JobEvent:
    """One sentence about a job, for people.

    Attributes:
        key: natural key within the job: an event with a known key is not told again. Empty
            for events that may happen more than once.
        level: "info", "warn" or "error".
        type: "message" or "metrics".
    """

    message: str
    key: str = ""
    level: str = "info"
    type: str = "message"
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedEvent:
    """An event with its place in the job's history; ``sequence`` rises."""

    sequence: int
    id: str
    create_time: datetime
    event: JobEvent


@dataclass(frozen=True)
class JobStarted:
    job: Job


@dataclass(frozen=True)
class JobSucceeded:
    job: Job


@dataclass(frozen=True)
class JobFailed:
    job: Job


@dataclass(frozen=True)
class JobCancelled:
    job: Job


@dataclass(frozen=True)
class CheckpointFinished:
    """``checkpoint`` is one that is compressed and served."""

    job: Job
    checkpoint: Checkpoint


Fact = JobStarted | JobSucceeded | JobFailed | JobCancelled | CheckpointFinished


@dataclass(frozen=True)
class Change:
    """What one step does.

    Attributes:
        revokes_lease: whether a worker that has the job in hand must stop (its epoch is raised).
    """

    job: Job
    facts: tuple[Fact, ...] = ()
    events: tuple[JobEvent, ...] = ()
    revokes_lease: bool = False


Step = Callable[[Job], Change]


@dataclass(frozen=True)
class RequestKey:
    """Identifies a request that may be sent twice (AIP-155); an empty id is none."""

    id: str
    digest: str


def utc_now() -> datetime:
    return datetime.now(UTC)


def tuned_model_id(base_model: str, tenant: str, suffix: str, unique: str) -> str:
    """``ft:{base}:{tenant}:{suffix}:{unique}``, as OpenAI names tuned models.

    A model tuned from a tuned one is named after the first of the line.
    """
    parts = base_model.split(":")
    root = parts[1] if parts[0] == "ft" and len(parts) > 1 else base_model
    return f"ft:{root}:{tenant}:{suffix}:{unique}"
