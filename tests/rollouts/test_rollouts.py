"""A few rollouts of each kind; ``make rollouts`` makes hundreds."""

from pathlib import Path

from millrace_registry.domain import RolloutState
from tests.rollouts import behaviour, fleet
from tests.rollouts.behaviour import AS_THE_OLD_ONE, KINDS, Behaviour
from tests.rollouts.report import report
from tests.rollouts.trial import Trial, Tried


def test_bad_versions_are_reversed_and_no_client_hears_of_them(tmp_path: Path) -> None:
    """How soon is for a machine that does nothing else."""
    planned = [*behaviour.plan(len(KINDS), 0, KINDS, seed=2), Behaviour()]
    with fleet.running(tmp_path / "fleet") as running:
        tried, clients = Trial(running, planned, 4, print).run(per_model=4, think_seconds=0.05)
    assert {each.how.kind: each.state for each in tried} == {
        **dict.fromkeys(KINDS, RolloutState.REVERSED),
        AS_THE_OLD_ONE: RolloutState.SETTLED,
    }
    assert clients.asked.total() > 100
    assert clients.failures == []


def test_a_run_is_planned_alike_from_the_same_seed() -> None:
    planned = behaviour.plan(12, 5, KINDS, seed=3)
    assert planned == behaviour.plan(12, 5, KINDS, seed=3)
    kinds = [each.kind for each in planned]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 2)
    assert kinds.count(AS_THE_OLD_ONE) == 5


def tried(kind: str, state: str, answers: int = 30, end: float | None = 4.0) -> Tried:
    return Tried("demo", 2, Behaviour(kind), state, "", answers, 1.0, end)


def test_a_run_in_which_all_was_as_promised() -> None:
    made = report([tried("slow", "REVERSED"), tried(AS_THE_OLD_ONE, "SETTLED")], 10, 0, [])
    assert made.faults() == []
    assert "within 5 s of 20 answers of both: 1 of 1" in made.table()


def test_every_broken_promise_is_told() -> None:
    ended = [
        tried("slow", "REVERSED", end=7.0),
        tried("errors", "SETTLED", answers=3),
        tried("errors", "CANARY", end=None),
        *[tried(AS_THE_OLD_ONE, "REVERSED")] * 2,
    ]
    made = report(ended, 10, 1, ["demo: 503"])
    assert made.faults() == [
        "3 of 3 bad versions were not reversed in time",
        "1 bad versions were promoted",
        "1 versions were promoted on no data",
        "2 of 2 good versions were reversed",
        "1 of 10 requests failed: demo: 503",
    ]
