"""Recalls: what is recalled, what learnt from it, and what has become of that. No database here.

A recall that does more than report stands until it is lifted: a version that turns out to be made
of its causes, however late, is not served either, and what holds its rows later is a cause too.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from millrace_registry.domain import LineageEdge, LineageNode, Version, VersionState

Key = tuple[str, str, int]
"""(tenant, model, number) of a version."""

_WHY = "recalled by "
_LIVE = (VersionState.SERVING, VersionState.ROLLING_OUT)


class Action(StrEnum):
    """In the order in which the stricter wins, where several recalls stand."""

    QUARANTINE = "QUARANTINE"
    ROLL_BACK = "ROLL_BACK"
    REPORT = "REPORT"


class Outcome(StrEnum):
    """What a recall did about a version (``recalls.proto``: RecallOutcome)."""

    REPORTED = "REPORTED"
    QUARANTINED = "QUARANTINED"
    ROLLED_BACK = "ROLLED_BACK"
    NO_SUCCESSOR = "NO_SUCCESSOR"
    OUT_ALREADY = "OUT_ALREADY"


@dataclass(frozen=True)
class Sought:
    """The rows that are recalled: their hashes (``sha256:…``), and all rows of ``file``, the name
    of an uploaded one (empty: none)."""

    hashes: tuple[str, ...] = ()
    file: str = ""

    @property
    def is_empty(self) -> bool:
        return not self.hashes and not self.file


@dataclass(frozen=True)
class Cause:
    """A file or a dataset that holds what is recalled; ``is_heldout``: models were judged by that
    part, and nothing follows. ``hashes``: the first of the rows. ``join_time``: when the standing
    recall found its rows there; None: it was made with it."""

    name: str
    digest: str = ""
    is_heldout: bool = False
    row_count: int = 0
    hashes: tuple[str, ...] = ()
    join_time: datetime | None = None


@dataclass(frozen=True)
class Met:
    """A version that learnt from a cause, as the recall met it, and what it did.

    ``reason_before``: what was the matter with it, other than recalls."""

    model: str
    number: int
    state_before: VersionState
    was_live: bool
    outcome: Outcome
    successor: int = 0
    reason_before: str = ""


@dataclass(frozen=True)
class Recalled:
    """``met``, and how the version stands now."""

    met: Met
    state: VersionState
    is_live: bool


@dataclass(frozen=True)
class Recall:
    """``nodes`` and ``edges``: all that was made of the causes; of one that is read alone.

    ``sought``: of one that is about to be made."""

    tenant: str
    id: str
    action: Action
    reason: str
    create_time: datetime
    causes: tuple[Cause, ...] = ()
    unindexed: tuple[str, ...] = ()
    traceparent: str = ""
    versions: tuple[Recalled, ...] = ()
    nodes: tuple[LineageNode, ...] = ()
    edges: tuple[LineageEdge, ...] = ()
    sought: Sought = Sought()
    lift_time: datetime | None = None
    lift_reason: str = ""

    @property
    def stands(self) -> bool:
        """What is made of its causes is not served."""
        return self.action != Action.REPORT and self.lift_time is None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/recalls/{self.id}"

    @property
    def why(self) -> str:
        """What is kept with the versions that it takes out."""
        return f"{_WHY}{self.id}" + (f": {self.reason}" if self.reason else "")


def is_recalls(reason: str) -> bool:
    """Whether it is a recall that says so."""
    return reason.startswith(_WHY)


def key_of(version: Version) -> Key:
    return version.tenant, version.model, version.number


def is_live(state: VersionState, is_held: bool) -> bool:
    """It answers requests, or may."""
    return state in _LIVE or is_held
