"""The ways in which a consumer dies, or is left without an answer, while it handles a fact.

Crash   the process has gone; what was not committed is lost, what was is kept
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection

from millrace_runtime.database import Database, open_database
from millrace_runtime.errors import Unavailable


class Crash(BaseException):
    """The process has gone. No ``except Exception`` of a service may outlive that."""


class Moment(StrEnum):
    """When a consumer dies."""

    NEVER = "-"
    BEFORE_HANDLER = "dies-before"
    BEFORE_COMMIT = "dies-in-transaction"
    AFTER_COMMIT = "dies-after-commit"
    BEFORE_ACKNOWLEDGEMENT = "dies-before-ack"
    UNANSWERED = "upstream-is-away"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call; ``transaction`` counts the call's own, from 1."""

    moment: Moment = Moment.NEVER
    transaction: int = 1

    def __repr__(self) -> str:
        counted = self.moment in (Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT)
        return f"{self.moment}-{self.transaction}" if counted else str(self.moment)


NO_FAULT = Fault()
COUNTED = (Moment.BEFORE_COMMIT, Moment.AFTER_COMMIT)
FAULTS = (
    NO_FAULT,
    *(Fault(moment) for moment in Moment if moment not in (Moment.NEVER, *COUNTED)),
    *(Fault(moment, number) for moment in COUNTED for number in (1, 2, 3)),
)


class MortalDatabase(Database):
    """A database whose user dies in, or right after, a transaction that it was told of."""

    def __init__(self) -> None:
        super().__init__(open_database("sqlite://").engine)
        self._fault = NO_FAULT
        self._count = 0

    def arm(self, fault: Fault) -> None:
        self._fault = fault
        self._count = 0

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        self._count += 1
        dies = self._count == self._fault.transaction
        with super().transaction() as connection:
            yield connection
            if dies and self._fault.moment == Moment.BEFORE_COMMIT:
                raise Crash
        if dies and self._fault.moment == Moment.AFTER_COMMIT:
            raise Crash


class Neighbours:
    """Whether the services that a consumer asks are there."""

    def __init__(self) -> None:
        self.are_away = False

    def ask(self) -> None:
        """
        Raises:
            Unavailable: they do not answer.
        """
        if self.are_away:
            raise Unavailable("the neighbour is away", reason="UPSTREAM_ERROR")
