"""SIGKILL at drawn crash points of whole lifecycles, on a real mesh.

First an undisturbed lifecycle shows which points there are and what the end must be. Then, in
each lifecycle, a few points are drawn and somebody is killed there: the process that is at the
point, or at that very instant Triton, NATS or another service. Whatever dies is started again by
the supervisor alone; the lifecycle must come to the undisturbed end.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from millrace_mesh.layout import SERVICES
from tests.chaos import chaos_mesh, lifecycle_end, replay
from tests.chaos.chaos_mesh import ChaosMesh, Fired, Passing
from tests.chaos.lifecycle_end import Lifecycle
from tests.chaos.outcome import Outcome, Say, percentile

KILLS_PER_LIFECYCLE = 4
_LIFECYCLES_PER_RUN = 3
_HITS = 5
# A compression whose job is killed three times is given up, as it should be.
_KILLS_OF_A_JOB = 2
_BYSTANDER_SHARE = 0.15
_POLL_SECONDS = 0.02
_RECOVERY_SECONDS = 60.0
_SLOW_SECONDS = 8.0

T = TypeVar("T")


@dataclass(frozen=True)
class Strike:
    """A kill that was drawn: ``victim`` is a process's name, or empty for whoever passes."""

    point: str
    hit: int
    victim: str

    @property
    def stage(self) -> str:
        return self.point.partition(":")[0].partition(".")[0]

    @property
    def ends_a_job(self) -> bool:
        return not self.victim and ".jobs." in self.point.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.point} #{self.hit}{f' kills {self.victim}' if self.victim else ''}"


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    points: set[str] = field(default_factory=set)
    recoveries_seconds: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Kill ``runs`` times, some kills in each lifecycle, with every job real."""
    return _run("crash", runs, seed, directory, say, {})


def run_replayed(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """As ``run``, with training and compression played again from the first time (``replay``)."""
    kept = directory / "replay"
    kept.mkdir(parents=True)
    settings = {replay.DIRECTORY_VARIABLE: str(kept)}
    return _run("crash-replayed", runs, seed, directory, say, settings)


def _run(
    name: str, runs: int, seed: int, directory: Path, say: Say, settings: Mapping[str, str]
) -> Outcome:
    draw = random.Random(seed)
    tally = Tally()
    with chaos_mesh.running(directory, settings) as chaos:
        lifecycles = _Lifecycles(chaos)
        lifecycles.execute()  # the first version of a model has nothing to replace
        tally.violations += lifecycles.check_history()
        chaos.plan()
        wanted = lifecycles.execute()
        tally.violations += lifecycles.check_history()
        catalogue = points_of(chaos.passings())
        say(f"{len(catalogue)} crash points in an undisturbed lifecycle")
        for _ in range(_LIFECYCLES_PER_RUN * runs):  # not every strike's point is passed
            if tally.kills >= runs:
                break
            strikes = _draw(draw, catalogue, min(KILLS_PER_LIFECYCLE, runs - tally.kills))
            _disturb(chaos, lifecycles, strikes, wanted, tally, say)
            say(f"{tally.kills} kills, {len(tally.violations)} violations")
            if tally.violations and not _is_alive(chaos):
                break
    return Outcome(name, tally.kills, tally.violations, _figures(tally, len(catalogue)))


def points_of(passings: Sequence[Passing]) -> dict[str, int]:
    """How often each point was passed, in the order in which they first were."""
    hits: dict[str, int] = {}
    for passing in sorted(passings, key=lambda passing: passing.time):
        hits[passing.point] = hits.get(passing.point, 0) + 1
    return hits


class _Lifecycles:
    """Lifecycles of one mesh, each knowing where the facts of those before it end."""

    def __init__(self, chaos: ChaosMesh) -> None:
        self._chaos = chaos
        self._numbers = count()
        self._outboxes: dict[str, int] = {}

    def execute(self) -> Lifecycle:
        key = f"lifecycle-{next(self._numbers)}"
        return lifecycle_end.execute(self._chaos, key, self._outboxes)

    def check_history(self) -> list[str]:
        """Violations of the stream's history since the last check; the next starts here."""
        facts, self._outboxes = self._chaos.recorded(self._outboxes)
        return lifecycle_end.unpublished(self._chaos, facts)


def _draw(draw: random.Random, catalogue: dict[str, int], number: int) -> list[Strike]:
    points = list(catalogue)
    chosen = sorted(draw.sample(range(len(points)), min(number, len(points))))
    strikes = [
        Strike(points[i], draw.randint(1, min(_HITS, catalogue[points[i]])), _victim(draw))
        for i in chosen
    ]
    of_jobs = Counter[str]()
    kept = []
    for strike in strikes:
        of_jobs[strike.stage] += strike.ends_a_job
        if not strike.ends_a_job or of_jobs[strike.stage] <= _KILLS_OF_A_JOB:
            kept.append(strike)
    return kept


def _victim(draw: random.Random) -> str:
    if draw.random() >= _BYSTANDER_SHARE:
        return ""
    return draw.choice(("triton", "nats", *SERVICES))


def _disturb(
    chaos: ChaosMesh,
    lifecycles: _Lifecycles,
    strikes: Sequence[Strike],
    wanted: Lifecycle,
    tally: Tally,
    say: Say,
) -> None:
    """One lifecycle with ``strikes``."""
    chaos.forget_passings()
    ended = threading.Event()
    attacker = threading.Thread(target=_attack, args=(chaos, strikes, ended, tally, say))
    attacker.start()
    told = ", ".join(str(strike) for strike in strikes)
    try:
        found = lifecycles.execute()
        violations = lifecycle_end.difference(found, wanted)
    except AssertionError as error:
        violations = [f"lost: {error}"]
    finally:
        ended.set()
        attacker.join()
    violations += lifecycles.check_history()
    for violation in violations:
        say(f"! {violation} [{told}]")
    tally.violations += [f"{violation} [{told}]" for violation in violations]


def _attack(
    chaos: ChaosMesh,
    strikes: Sequence[Strike],
    ended: threading.Event,
    tally: Tally,
    say: Say,
) -> None:
    """Carry out ``strikes`` one after the other, as far as the lifecycle passes their points."""
    for strike in strikes:
        victim = chaos.process(strike.victim)["pid"] if strike.victim else 0
        plan = chaos.plan(strike.point, strike.hit, victim or 0)
        fired = _wait(partial(chaos.fired, plan), ended)
        if fired is None:
            continue
        tally.kills += 1
        tally.points.add(strike.point)
        seconds = _recovery(chaos, strike, fired, ended)
        if seconds is not None:
            tally.recoveries_seconds.append(seconds)
        if seconds is not None and seconds > _SLOW_SECONDS:
            say(f"slow: {seconds:.1f} s after {strike}")
    chaos.plan()


def _recovery(
    chaos: ChaosMesh, strike: Strike, fired: Fired, ended: threading.Event
) -> float | None:
    """Seconds from the kill until a successor works: a process of the same kind that passes a
    point or is ready, and a job of each kind that was running under it. None: none was needed."""
    name = strike.victim or strike.point.partition(":")[0]
    before = [p for p in chaos.passings() if p.time <= fired.time]
    waited = {name, *_unfinished_jobs(before, name)}

    def successors() -> list[float] | None:
        times = [_first_after(chaos, kind, fired) for kind in waited]
        return [t for t in times if t is not None] if None not in times else None

    found = _wait(successors, ended, _RECOVERY_SECONDS)
    if found:
        return max(found) - fired.time
    return None if ended.is_set() else _RECOVERY_SECONDS  # it took at least as long


def _unfinished_jobs(before: Sequence[Passing], service: str) -> set[str]:
    """Kinds of the service's jobs that had begun and not ended."""
    ends = {p.pid for p in before if p.point.endswith("exit before")}
    return {
        p.process for p in before if p.process.startswith(f"{service}.jobs.") and p.pid not in ends
    }


def _first_after(chaos: ChaosMesh, kind: str, fired: Fired) -> float | None:
    for passing in chaos.passings():
        if passing.process == kind and passing.time > fired.time and passing.pid != fired.victim:
            return passing.time
    if ".jobs." in kind:
        return None
    process = chaos.process(kind)
    is_new = process["pid"] != fired.victim and (process["ready_at"] or 0) > fired.time
    return float(process["ready_at"]) if is_new else None


def _wait(
    condition: Callable[[], T | None], ended: threading.Event, limit_seconds: float = 1e9
) -> T | None:
    """Poll until there is something, at most until the lifecycle has ended."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        last = ended.is_set()
        found = condition()
        if found is not None or last:
            return found
        time.sleep(_POLL_SECONDS)
    return None


def _is_alive(chaos: ChaosMesh) -> bool:
    return chaos.process("gateway")["phase"] == "ready"


def _figures(tally: Tally, points: int) -> dict[str, float | int | str]:
    kinds = ("lost", "duplicated", "diverged")
    return {
        "crash points known": points,
        "crash points hit": len(tally.points),
        **{kind: sum(v.startswith(kind) for v in tally.violations) for kind in kinds},
        "recovery_p50_seconds": percentile(tally.recoveries_seconds, 0.50),
        "recovery_p99_seconds": percentile(tally.recoveries_seconds, 0.99),
        "recovery_maximum_seconds": percentile(tally.recoveries_seconds, 1.0),
    }
