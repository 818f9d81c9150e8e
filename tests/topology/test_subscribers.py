"""The topology says what the services do: each subscribes to exactly what it says."""

import importlib

import pytest

from millrace.topology import FACTS, STAGES, consumed_by, produced_by
from millrace_runtime.bus import Subscription


def subscribed(stage: str) -> set[str]:
    """Types of the facts that the stage's ``events.py`` subscribes to."""
    module = importlib.import_module(f"millrace_{stage}.events")
    found: tuple[Subscription, ...] = module.SUBSCRIPTIONS
    return {subscription.message.DESCRIPTOR.full_name for subscription in found}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if not consumed_by(stage)])
def test_who_consumes_nothing_subscribes_to_nothing(stage: str) -> None:
    assert subscribed(stage) == set()


def test_every_fact_has_one_producer_and_known_consumers() -> None:
    assert {fact.producer for fact in FACTS} <= set(STAGES)
    assert {consumer for fact in FACTS for consumer in fact.consumers} <= set(STAGES)
    assert all(produced_by(stage) for stage in STAGES)
