"""A short slice of the delivery histories, and that a consumer that is wrong is found out."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Connection

from millrace_compressor.domain import Order
from millrace_compressor.events import FactRecorder as CompressorFacts
from millrace_compressor.schema import OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_registry.domain import Deployment, Version
from millrace_registry.events import FactRecorder
from millrace_registry.store import Catalogue
from millrace_runtime.outbox import Outbox
from tests.chaos import delivery
from tests.chaos.delivery.compressor import CompressorWorld
from tests.chaos.delivery.machine import Diverged, machine_of
from tests.chaos.delivery.registry import RegistryWorld
from tests.chaos.delivery.world import World

_RUNS = 400
_SEED = 3


def test_the_end_state_is_that_of_the_undisturbed_history(tmp_path: Path) -> None:
    outcome = delivery.run(_RUNS, _SEED, tmp_path, print)
    assert not outcome.violations, "\n".join(outcome.violations)
    assert outcome.runs >= _RUNS
    assert outcome.figures["crashes"] > 0
    assert outcome.figures["deliveries"] > outcome.figures["facts"]


@pytest.mark.parametrize("name", delivery.WORLDS)
def test_every_fact_of_the_topology_is_tried(name: str, tmp_path: Path) -> None:
    assert delivery.WORLDS[name](tmp_path).is_complete()


class TornStore(CompressionStore):
    """Remembers first, and orders in other transactions: who dies in between never orders."""

    def consider(self, checkpoint_name: str, orders: Sequence[Order]) -> None:
        super().consider(checkpoint_name, [])
        for order in orders:
            super().add(order)


class TornCompressor(CompressorWorld):
    def store(self) -> CompressionStore:
        record = CompressorFacts(Outbox(OUTBOX, self.now))
        return TornStore(self.database, record, owner="one", lease_seconds=15, now=self.now)


class CredulousCatalogue(Catalogue):
    """Takes what arrives last for the newest."""

    def _add_rollout(
        self, connection: Connection, version: Version, deployment: Deployment, is_late: bool
    ) -> None:
        super()._add_rollout(connection, version, deployment, is_late=False)


class CredulousRegistry(RegistryWorld):
    def catalogue(self, record: FactRecorder) -> Catalogue:
        return CredulousCatalogue(self.database, record, now=self.now)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda _: TornCompressor(), "should have"),
        (CredulousRegistry, "serving_version|went back"),
    ],
)
def test_a_consumer_that_is_wrong_is_found_out(
    make: Callable[[Path], World], told: str, tmp_path: Path
) -> None:
    machine = seed(_SEED)(machine_of(make(tmp_path), Counter()))
    unshrunk = settings(delivery.settings_of(400), phases=(Phase.generate,))
    with pytest.raises(Diverged, match=told):
        run_state_machine_as_test(machine, settings=unshrunk)
