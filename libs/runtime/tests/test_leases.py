import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, String, Table, select, true

from millrace_runtime import leases
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.owner import this_process
from millrace_testkit.clock import FakeClock

METADATA = MetaData()
TASKS = Table(
    "tasks",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("answer", String(32)),
    *leases.lease_columns(),
)
DURATION = timedelta(seconds=10)


@pytest.fixture(autouse=True)
def tasks(database: Database) -> None:
    METADATA.create_all(database.engine)
    with database.transaction() as connection:
        connection.execute(TASKS.insert(), [{"id": "task-1"}, {"id": "task-2"}])


def claim(database: Database, clock: FakeClock, owner: str) -> Lease | None:
    with database.transaction() as connection:
        return leases.claim(connection, TASKS, true(), owner=owner, now=clock(), duration=DURATION)


def answer(database: Database, lease: Lease, text: str) -> None:
    with database.transaction() as connection:
        result = connection.execute(leases.fenced(TASKS, lease).values(answer=text))
        leases.require_held(result, lease)


def test_each_row_has_one_worker(database: Database, clock: FakeClock) -> None:
    first, second = claim(database, clock, "a"), claim(database, clock, "b")
    assert first and second and {first.id, second.id} == {"task-1", "task-2"}
    assert claim(database, clock, "c") is None


def test_preferred_rows_go_before_older_ones(database: Database, clock: FakeClock) -> None:
    def preferring(identifier: str) -> Lease | None:
        with database.transaction() as connection:
            return leases.claim(
                connection,
                TASKS,
                true(),
                owner="a",
                now=clock(),
                duration=DURATION,
                preferred=TASKS.c.id == identifier,
            )

    first, second = preferring("task-2"), preferring("task-2")
    assert first and second
    assert (first.id, second.id) == ("task-2", "task-1"), "others go when no preferred one is free"


def test_a_live_lease_is_renewed_and_an_expired_one_taken_over(
    database: Database, clock: FakeClock
) -> None:
    lease = claim(database, clock, "a")
    assert lease
    clock.advance(8)
    with database.transaction() as connection:
        leases.renew(connection, TASKS, lease, now=clock(), duration=DURATION)
    clock.advance(8)
    other = claim(database, clock, "b")
    assert other and other.id == "task-2"
    clock.advance(3)
    taken = claim(database, clock, "b")
    assert taken and taken.id == "task-1" and taken.epoch == lease.epoch + 1


def test_a_worker_that_lost_its_lease_cannot_write(database: Database, clock: FakeClock) -> None:
    stale = claim(database, clock, "a")
    assert stale
    clock.advance(11)
    current = claim(database, clock, "b")
    assert current and current.id == stale.id
    answer(database, current, "new")
    with pytest.raises(LeaseLost):
        answer(database, stale, "stale")
    with pytest.raises(LeaseLost), database.transaction() as connection:
        leases.renew(connection, TASKS, stale, now=clock(), duration=DURATION)
    with database.transaction() as connection:
        query = select(TASKS.c.answer).where(TASKS.c.id == stale.id)
        assert connection.execute(query).scalar_one() == "new"


def test_a_released_row_can_be_claimed_at_once(database: Database, clock: FakeClock) -> None:
    lease = claim(database, clock, "a")
    assert lease
    with database.transaction() as connection:
        leases.release(connection, TASKS, lease)
    again = claim(database, clock, "b")
    assert again and again.id == lease.id and again.epoch == lease.epoch + 1


def test_a_row_that_is_put_off_waits_and_nobody_can_hold_it_meanwhile(
    database: Database, clock: FakeClock
) -> None:
    lease = claim(database, clock, "a")
    assert lease
    with database.transaction() as connection:
        leases.put_off(connection, TASKS, lease, clock() + timedelta(seconds=30))
    with pytest.raises(LeaseLost), database.transaction() as connection:
        leases.renew(connection, TASKS, lease, now=clock(), duration=DURATION)
    with pytest.raises(LeaseLost):
        answer(database, lease, "late")
    with pytest.raises(LeaseLost), database.transaction() as connection:
        leases.put_off(connection, TASKS, lease, clock())
    clock.advance(29)
    other = claim(database, clock, "b")
    assert other and other.id != lease.id
    clock.advance(2)
    again = claim(database, clock, "b")
    assert again and again.id == lease.id


def test_a_released_row_is_not_renewed(database: Database, clock: FakeClock) -> None:
    """The thread that renews may come a moment after the one that gave the row back."""
    lease = claim(database, clock, "a")
    assert lease
    with database.transaction() as connection:
        leases.release(connection, TASKS, lease)
    with pytest.raises(LeaseLost), database.transaction() as connection:
        leases.renew(connection, TASKS, lease, now=clock(), duration=DURATION)
    again = claim(database, clock, "b")
    assert again and again.id == lease.id


def test_work_of_an_owner_that_has_ended_is_taken_over_before_its_lease_runs_out(
    database: Database, clock: FakeClock
) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        place = this_process().rpartition("/")[0].rpartition("/")[0]
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        stale = claim(database, clock, f"{place}/{process.pid}/{ticks}")
        other = claim(database, clock, "b")
        assert stale and other and claim(database, clock, "c") is None
        process.kill()
    taken = claim(database, clock, "c")
    assert taken and taken.id == stale.id and taken.epoch == stale.epoch + 1
