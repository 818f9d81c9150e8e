"""``delivery``: facts that come twice, late, in any order, or while their consumer dies."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.delivery.compressor import CompressorWorld
from tests.chaos.delivery.machine import Diverged, machine_of
from tests.chaos.delivery.registry import RegistryWorld
from tests.chaos.delivery.trainer import TrainerWorld
from tests.chaos.delivery.tuner import TunerWorld
from tests.chaos.delivery.world import World
from tests.chaos.outcome import Outcome, Say

WORLDS: Mapping[str, Callable[[Path], World]] = {
    "trainer": lambda _: TrainerWorld(),
    "compressor": lambda _: CompressorWorld(),
    "registry": RegistryWorld,
    "tuner": lambda _: TunerWorld(),
}
_STEPS = 12
_BATCH = 250


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Make ``runs`` histories, of each consumer as many; ``seed`` draws the same ones again.

    A consumer that diverges is left alone from then on: its smallest history is told.
    """
    say(f"seed {seed}")
    started = time.monotonic()
    violations: list[str] = []
    totals: Counter[str] = Counter()
    worlds = [make(directory / name) for name, make in WORLDS.items()]
    left = {world: -(-runs // len(worlds)) for world in worlds}
    batch = 0
    while any(left.values()):
        for world in [world for world, count in left.items() if count]:
            count = min(_BATCH, left[world])
            violation = _make(world, count, seed + batch, totals)
            if violation:
                say(violation)
                violations.append(violation)
            left[world] = 0 if violation else left[world] - count
        batch += 1
        say(f"{totals['histories']} histories in {time.monotonic() - started:.0f} s")
    return Outcome("delivery", totals["histories"], violations, dict(totals))


def _make(world: World, count: int, seed: int, totals: Counter[str]) -> str:
    """The first divergence, as small as it could be made; empty when there is none."""
    machine = seeded(seed)(machine_of(world, totals))
    try:
        run_state_machine_as_test(machine, settings=settings_of(count))
    except Exception as error:  # whatever a handler raises is a broken promise too
        return f"{world.name} (seed {seed}): {_told(error)}"
    return ""


def _told(error: Exception) -> str:
    if isinstance(error, Diverged):
        return str(error)
    return "\n".join((f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())))


def settings_of(histories: int) -> settings:
    """For so many histories, none of which is kept for another time."""
    return settings(
        max_examples=histories,
        stateful_step_count=_STEPS,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
