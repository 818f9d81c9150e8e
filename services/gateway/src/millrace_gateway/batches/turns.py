"""Whose turn it is: places for batches are shared among tenants, however many batches each has.

A free place goes to the tenant with the fewest batches under way; of several such tenants, to
the one that was given a place longest ago. A tenant that has none, and was given none for a
whole turn, has one made free for it: a batch of the tenant that holds most, which has had a
turn of its own, stops between two lines and goes on when its tenant is next.

All gateways decide alike, from one database. Two that look at the same moment may both give
places to one tenant, as neither sees the other's choice yet; the end of a turn puts that right,
and no gateway that is stopped amid its choice can keep the others from theirs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    """A place that is taken: by which batch, and since when."""

    batch_id: str
    tenant: str
    since: datetime


@dataclass(frozen=True)
class Waiting:
    """A tenant that has batches without a place.

    Attributes:
        since: when the oldest of them was made.
        served: when the tenant was last given a place, for whichever batch; None: never.
    """

    tenant: str
    since: datetime
    served: datetime | None


@dataclass(frozen=True)
class Standing:
    """All places and all who wait, of all gateways."""

    places: Sequence[Place]
    waiting: Sequence[Waiting]


def next_tenant(standing: Standing) -> str | None:
    """Who is given the next free place; None when nobody waits."""
    held = Counter(place.tenant for place in standing.places)

    def rank(one: Waiting) -> tuple[int, datetime, datetime, str]:
        return held[one.tenant], one.served or _NEVER, one.since, one.tenant

    first = min(standing.waiting, key=rank, default=None)
    return None if first is None else first.tenant


def leaving(standing: Standing, turn: timedelta, now: datetime) -> frozenset[str]:
    """The batches that are to give their places up: no more than tenants who are due one."""
    held = Counter(place.tenant for place in standing.places)
    due = sum(not held[one.tenant] and _is_due(one, turn, now) for one in standing.waiting)
    staying = list(standing.places)
    found: set[str] = set()
    while staying and len(found) < due:
        place = min(staying, key=lambda one: (-held[one.tenant], one.since, one.batch_id))
        if now - place.since < turn:
            break
        staying.remove(place)
        held[place.tenant] -= 1
        found.add(place.batch_id)
    return frozenset(found)


def _is_due(one: Waiting, turn: timedelta, now: datetime) -> bool:
    return now - max(one.since, one.served or _NEVER) >= turn
