"""Batches: what they are, and which states they go through.

    VALIDATING ──► IN_PROGRESS ──► FINALIZING ──► COMPLETED | EXPIRED
      │    └──────────────┬───────────┐  └──────► FAILED
      └──► FAILED         ▼           └ when its time is over
                     CANCELLING ──► CANCELLED | FAILED

A batch that has ended never changes again. What is FINALIZING and was not answered whole has
run out of time. Reference: https://platform.openai.com/docs/api-reference/batch
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

COMPLETION_WINDOW = "24h"
WINDOW = timedelta(hours=24)
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


class Status(StrEnum):
    """A batch's state, in the OpenAI API's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return not NEXT[self]


NEXT: Mapping[Status, frozenset[Status]] = {
    Status.VALIDATING: frozenset(
        (Status.FAILED, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING)
    ),
    Status.IN_PROGRESS: frozenset((Status.FINALIZING, Status.CANCELLING)),
    Status.FINALIZING: frozenset((Status.COMPLETED, Status.EXPIRED, Status.FAILED)),
    Status.CANCELLING: frozenset((Status.CANCELLED, Status.FAILED)),
    Status.COMPLETED: frozenset(),
    Status.EXPIRED: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.FAILED: frozenset(),
}


@dataclass(frozen=True)
class BatchError:
    """Why a batch failed; ``line`` counts from 1, and is None when no line is at fault."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of answers; the cached and the reasoning ones are parts of the others."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Order:
    """What was asked for, and with which key: its limits hold for every line."""

    tenant: str
    key_id: str
    endpoint: str
    input_file_id: str
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Batch:
    """A batch. Times are None until they have come; ``finish_time`` is the end's, whichever.

    Attributes:
        model: which all lines ask; None before the input was checked.
        total: lines; 0 before the input was checked.
        completed: lines answered with a 200.
        failed: lines answered with anything else.
    """

    id: str
    order: Order
    status: Status
    traceparent: str
    create_time: datetime
    expire_time: datetime
    start_time: datetime | None = None
    finalize_time: datetime | None = None
    cancel_time: datetime | None = None
    finish_time: datetime | None = None
    model: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Sequence[BatchError] = ()

    @property
    def name(self) -> str:
        return f"tenants/{self.order.tenant}/batches/{self.id}"

    def ending(self) -> Status:
        """How it ends when its files are made."""
        if self.status is Status.CANCELLING:
            return Status.CANCELLED
        is_whole = self.total > 0 and self.completed + self.failed == self.total
        return Status.COMPLETED if is_whole else Status.EXPIRED

    def line_id(self, number: int) -> str:
        """A line's own id: the same whoever writes it down."""
        return f"batch_req_{self.id.rpartition('-')[2]}_{number}"


@dataclass(frozen=True)
class LineAnswer:
    """What becomes of a line: ``document`` is its line in the output or the error file."""

    is_success: bool
    document: str
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Line:
    """A line of a batch, by its number in the input file; ``answer`` is None before it has one."""

    number: int
    custom_id: str
    is_success: bool | None = None
    answer: str | None = None
