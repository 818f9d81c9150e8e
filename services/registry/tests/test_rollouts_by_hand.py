"""Rollouts that a person asks for, and tags, on SQLite and PostgreSQL."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from registry_builders import MIGRATIONS, World

from millrace_registry.domain import RequestKey, Rollout, RolloutState, VersionState
from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from millrace_testkit.clock import FakeClock


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    return World(database, tmp_path, clock)


def ask(world: World, number: int, request: str = "", digest: str = "") -> Rollout:
    return world.app.create_rollout("acme", "demo", number, RequestKey(request, digest), "")


def two_versions(world: World) -> None:
    """Version 2 serves, 1 did before it."""
    world.serve(1)
    world.finish(2)
    world.look(40)
    assert world.version(2).state == VersionState.SERVING


def test_an_older_version_is_rolled_out_by_the_deployments_strategy(world: World) -> None:
    two_versions(world)
    made = ask(world, 1)
    assert (made.state, made.to_version) == (RolloutState.PENDING, 1)
    world.look(2)
    assert world.app.rollout("acme", made.id).state == RolloutState.CANARY
    assert world.app.rollout("acme", made.id).from_version == 2
    assert world.shares() == {1: 0.25, 2: 0.75}
    world.look(40)
    assert world.app.rollout("acme", made.id).state == RolloutState.SETTLED
    model = world.app.model("acme", "demo")
    assert (model.serving_version, model.aliases["champion"]) == (1, 1)
    assert world.version(2).state == VersionState.RETIRED
    assert world.shares() == {1: 1.0}


def test_the_way_there_and_back_again(world: World) -> None:
    two_versions(world)
    for number in (1, 2, 1):
        ask(world, number)
        world.look(40)
        assert world.app.model("acme", "demo").serving_version == number
    assert world.rollout_states() == ["SETTLED"] * 5


def test_what_was_reversed_may_be_tried_again(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(2)
    first = world.app.rollouts("acme", "demo", 1, "")[0][0]
    world.app.reverse("acme", first.id, "not today")
    world.look(2)
    ask(world, 2)
    world.look(40)
    assert world.version(2).state == VersionState.SERVING
    assert world.version(2).state_reason == ""


def test_rollouts_that_wait_give_way(world: World) -> None:
    two_versions(world)
    world.finish(3)
    world.finish(4)
    made = ask(world, 1)
    assert world.rollout_states()[-3:] == ["SUPERSEDED", "SUPERSEDED", "PENDING"]
    world.look(40)
    assert world.app.rollout("acme", made.id).state == RolloutState.SETTLED
    assert world.version(3).state == VersionState.REGISTERED


def test_a_request_that_comes_twice_is_one_rollout(world: World) -> None:
    two_versions(world)
    made = ask(world, 1, "request-1", "digest")
    assert ask(world, 1, "request-1", "digest").id == made.id
    with pytest.raises(AlreadyExists):
        ask(world, 2, "request-1", "another")


def test_what_may_not_be_rolled_out_is_refused_with_the_reason(world: World) -> None:
    two_versions(world)
    with pytest.raises(NotFound, match="no version 9"):
        ask(world, 9)
    with pytest.raises(NotFound, match="no model 'other'"):
        world.app.create_rollout("acme", "other", 1, RequestKey("", ""), "")
    with pytest.raises(FailedPrecondition, match="serves already"):
        ask(world, 2)
    made = ask(world, 1)
    with pytest.raises(FailedPrecondition, match=made.id):
        ask(world, 1)
    world.app.quarantine("acme", "demo", 1, "it is wrong")
    with pytest.raises(FailedPrecondition, match="it is wrong"):
        ask(world, 1)


def test_one_that_came_to_serve_meanwhile_settles(world: World) -> None:
    two_versions(world)
    made = ask(world, 1)
    world.app.quarantine("acme", "demo", 2, "it is wrong")
    assert world.version(1).state == VersionState.SERVING
    world.look(2)
    assert world.app.rollout("acme", made.id).reason == "it serves already"
    assert world.shares() == {1: 1.0}


def test_one_that_is_reversed_before_its_turn_leaves_its_version_as_it_was(world: World) -> None:
    two_versions(world)
    made = ask(world, 1)
    world.app.reverse("acme", made.id, "")
    assert world.version(1).state == VersionState.RETIRED
    assert world.version(1).state_reason == ""


def test_tags_are_put_replaced_and_taken_away(world: World) -> None:
    world.finish(1)
    assert world.app.set_tags("acme", "demo", None, {"team": "a", "x": "1"}, ()) == {
        "team": "a",
        "x": "1",
    }
    assert world.app.set_tags("acme", "demo", None, {"team": "b"}, ("x", "none")) == {"team": "b"}
    assert world.app.set_tags("acme", "demo", 1, {"checked": "yes"}, ()) == {"checked": "yes"}
    assert world.app.model("acme", "demo").tags == {"team": "b"}
    assert world.version(1).tags == {"checked": "yes"}
    with pytest.raises(NotFound):
        world.app.set_tags("other", "demo", None, {"team": "c"}, ())
    with pytest.raises(NotFound):
        world.app.set_tags("acme", "demo", 2, {"team": "c"}, ())
    with pytest.raises(InvalidArgument, match="100"):
        world.app.set_tags("acme", "demo", None, {str(n): "" for n in range(100)}, ())


def test_rollouts_of_before_are_kept_by_the_migration(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0007")
    columns = {
        "deployment": "d", "model": "m", "from_version": 0, "state": "SETTLED", "step": 0,
        "traffic_share": 1.0, "reason": "", "counters": "{}", "requests": 0, "failures": 0,
        "traceparent": "", "create_time": "2030-01-01", "update_time": "2030-01-01",
    }  # fmt: skip
    names = ("id", "tenant", "to_version", *columns)
    insert = sa.text(
        f"INSERT INTO rollouts ({', '.join(names)}) VALUES ({', '.join(f':{n}' for n in names)})"
    )
    with database.transaction() as connection:
        connection.execute(insert, {"id": "r1", "tenant": "acme", "to_version": 1, **columns})
    migrate(database, MIGRATIONS)
    with database.transaction() as connection:
        connection.execute(insert, {"id": "r2", "tenant": "acme", "to_version": 1, **columns})
        count = connection.execute(sa.text("SELECT count(*) FROM rollouts")).scalar_one()
    assert count == 2
