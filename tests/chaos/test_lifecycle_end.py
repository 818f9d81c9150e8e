"""What two lifecycles must have in common, and what may differ."""

from typing import Any

from tests.chaos.lifecycle_end import Lifecycle, difference

ID = "0123456789abcdefghjkmnpqrs"
OTHER = "srqpnmkjhgfedcba9876543210"


def settled(version: int, rollout: str, **data: Any) -> dict[str, Any]:
    name = f"tenants/default/rollouts/rollout-{rollout}"
    said = {"rollout": name, "to_version": str(version), **data}
    return {"type": "millrace.registry.v1.RolloutSettled", "data": said}


def lifecycle(version: int, *facts: dict[str, Any], weights: str = "sha256:1") -> Lifecycle:
    return Lifecycle("run", version, facts, weights)


WANTED = lifecycle(2, settled(2, ID))


def test_ids_and_numbers_may_differ() -> None:
    assert difference(lifecycle(3, settled(3, OTHER)), WANTED) == []


def test_a_fact_that_is_missing_twice_there_or_another_is_told() -> None:
    assert difference(lifecycle(2), WANTED)[0].startswith("lost: ")
    twice = lifecycle(2, settled(2, ID), settled(2, OTHER))
    assert difference(twice, WANTED)[0].startswith("duplicated: ")
    changed = difference(lifecycle(2, settled(1, ID)), WANTED)
    assert [said.partition(":")[0] for said in changed] == ["lost", "diverged"]


def test_other_weights_are_told() -> None:
    found = lifecycle(2, settled(2, ID), weights="sha256:2")
    assert difference(found, WANTED) == ["diverged: the weights are others"]
