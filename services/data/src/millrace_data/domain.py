"""Files, uploads and datasets: what they are, and which states they go through.

    a dataset:  QUEUED ──► RUNNING ──► SUCCEEDED | FAILED
                   └──────────┴──────► CANCELLED
    an upload:  PENDING ──► COMPLETED | CANCELLED | EXPIRED

What is in one of the last three states never changes again. Identity of content is its
digest; an id names one resource of one tenant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

from millrace_examples.report import Report

MAXIMUM_ATTEMPTS = 3


def utc_now() -> datetime:
    return datetime.now(UTC)


class FilePurpose(StrEnum):
    """What a file is for, in the OpenAI API's words."""

    FINE_TUNE = "fine-tune"
    FINE_TUNE_RESULTS = "fine-tune-results"
    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    USER_DATA = "user_data"


class WorkState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in (WorkState.SUCCEEDED, WorkState.FAILED, WorkState.CANCELLED)


@dataclass(frozen=True)
class Content:
    """Bytes in the shared store; ``digest`` is that of a file, or of a directory's manifest."""

    uri: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class File:
    """An uploaded file; ``example_count`` is 0 unless it is for fine-tuning.

    It goes by itself at ``expire_time``; None: it stays until it is deleted. ``report`` is what
    its check found; None unless it is for fine-tuning, and of files of before.
    """

    tenant: str
    id: str
    filename: str
    purpose: FilePurpose
    content: Content
    example_count: int
    create_time: datetime
    expire_time: datetime | None = None
    report: Report | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/files/{self.id}"


class UploadState(StrEnum):
    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True)
class Upload:
    """A file that comes in parts.

    Attributes:
        size_bytes: of the whole file, as announced.
        expire_time: when the upload is given up if it is not complete by then.
        file_expire_seconds: how long the file is kept once it is made; None: until deleted.
        part_ids: the parts that became the file, in its order; set once COMPLETED.
        md5: of the file, in lower-case hexadecimal; set once COMPLETED.
        file: set once COMPLETED, for as long as it is there.
    """

    tenant: str
    id: str
    filename: str
    purpose: FilePurpose
    mime_type: str
    size_bytes: int
    create_time: datetime
    expire_time: datetime
    file_expire_seconds: int | None = None
    state: UploadState = UploadState.PENDING
    part_ids: tuple[str, ...] = ()
    md5: str = ""
    file: File | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/uploads/{self.id}"

    def at(self, now: datetime) -> "Upload":
        """As it is at ``now``: its time may have run out before the reconciler says so."""
        if self.state is UploadState.PENDING and now >= self.expire_time:
            return replace(self, state=UploadState.EXPIRED)
        return self


@dataclass(frozen=True)
class UploadPart:
    """Some bytes of an upload; where in the file they belong is said when it is completed."""

    tenant: str
    upload_id: str
    id: str
    content: Content
    create_time: datetime

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/uploads/{self.upload_id}/parts/{self.id}"


@dataclass(frozen=True)
class PythonStandardLibrary:
    """The standard library of the Python that runs the job."""


@dataclass(frozen=True)
class FileSet:
    """Uploaded files, by id, of the dataset's own tenant."""

    file_ids: tuple[str, ...]


@dataclass(frozen=True)
class ExampleSet:
    """Uploaded files of examples for tuning, by id: the dataset holds the distinct ones."""

    file_ids: tuple[str, ...]


DatasetSource = PythonStandardLibrary | FileSet | ExampleSet


@dataclass(frozen=True)
class Recipe:
    """How documents become tokens. ``maximum_bytes`` 0 reads all of the source."""

    vocabulary_size: int = 4096
    heldout_fraction: float = 0.02
    near_duplicate_threshold: float = 0.8
    maximum_bytes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a build has come; ``completed`` and ``total`` are in the phase's own unit."""

    phase: str = ""
    completed: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a build failed; ``reason`` is UPPER_SNAKE."""

    reason: str
    message: str


@dataclass(frozen=True)
class BuiltDataset:
    """What a build has made. ``documents`` counts them by fate (read, exact_duplicates, …).

    Of a dataset of examples these are the documents; it has no tokenizer, and ``train_tokens``
    is an estimate.
    """

    content: Content
    tokenizer_digest: str
    train_tokens: int
    heldout_tokens: int
    documents: Mapping[str, int]


@dataclass(frozen=True)
class Dataset:
    """A tokenised corpus with its tokenizer, or the work that will make one.

    Attributes:
        built: set once SUCCEEDED.
        failure: set once FAILED or CANCELLED.
        attempts: builds that crashed so far.
        traceparent: W3C trace context of the request that made it.
    """

    tenant: str
    id: str
    display_name: str
    source: DatasetSource
    recipe: Recipe
    create_time: datetime
    update_time: datetime
    state: WorkState = WorkState.QUEUED
    progress: Progress = Progress()
    built: BuiltDataset | None = None
    failure: Failure | None = None
    attempts: int = 0
    traceparent: str = ""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/datasets/{self.id}"


@dataclass(frozen=True)
class RequestKey:
    """What makes a request to create something the same request: its id and its content.

    An empty id never matches another request.
    """

    id: str = ""
    digest: str = ""


@dataclass(frozen=True)
class FileUploaded:
    file: File


@dataclass(frozen=True)
class DatasetReady:
    dataset: Dataset


@dataclass(frozen=True)
class DatasetFailed:
    """A dataset will never be ready: its build failed, or was cancelled."""

    dataset: Dataset


Fact = FileUploaded | DatasetReady | DatasetFailed

CANCELLED = Failure("CANCELLED", "the dataset was cancelled before it was ready")


def may_retry(failure: Failure, attempts: int) -> bool:
    """Whether a build that failed is tried again: only when it is no mistake of the user's.

    ``attempts`` counts the failed builds, this one included.
    """
    return failure.reason in ("CRASHED", "INTERNAL") and attempts < MAXIMUM_ATTEMPTS
