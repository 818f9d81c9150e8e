"""Training that is killed at random ends as training that is not: same losses, same weights.

A worker of the trainer (one rank, two ranks) or of the tuner runs one small piece of work with its
real store, leases and job processes (``training_service``). Once undisturbed, for the truth; then
again and again, with SIGKILL to one rank, to torchrun, to the whole job or to the service: at a
drawn step, at a drawn moment (imports too), while files are being written, and right before or
after a rename, an fsync or a line of the job (``crash_points``). Afterwards must hold:

- every step's loss, learning rate and gradient norm, also of a step that was done again, and the
  weights of every checkpoint are bitwise those of the undisturbed run; every fact was told once;
- at most one checkpoint interval was done again after a kill;
- whoever was left of a job ended soon, and no process and no ``.tmp-`` is left.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from millrace_runtime import manifest
from tests.chaos import crash_points
from tests.chaos.crash_points import Plan
from tests.chaos.outcome import Outcome, Say
from tests.chaos.training_kills import Kill, draw_kills
from tests.chaos.training_service import HEARD, Ended, Stage, open_stage

NAME = "training"
STAGES = ("trainer", "two-ranks", "tuner")
_KILLS_IN_ONE_TRAINING = 3
_END_SECONDS = 45.0  # what is left of a job whose rank was killed must have ended by then
_TRAINING_SECONDS = 240.0
_POLL_SECONDS = 0.002
_POINTS_OF = ("rename", "replace", "fsync", "rmtree", "line", "exit")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Told:
    """What came of one disturbed training."""

    violations: list[str] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)
    steps_redone: list[int] = field(default_factory=list)
    end_seconds: list[float] = field(default_factory=list)


class Service:
    """A service process with one piece of work, in a folder of its own."""

    def __init__(self, name: str, folder: Path, template: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        self.name, self.folder, self.points = name, folder, folder / "points"
        self.points.mkdir()
        self.plan(Plan("none"))
        self._stage: Stage | None = None
        self._start()

    def plan(self, plan: Plan) -> None:
        path = self.points / crash_points.PLAN
        path.with_suffix(".new").write_text(json.dumps(asdict(plan)))
        path.with_suffix(".new").replace(path)

    def _start(self) -> None:
        path = os.pathsep.join((str(_ROOT / "tests/chaos/inject"), str(_ROOT)))
        chaos = {"PYTHONPATH": path, crash_points.DIRECTORY_VARIABLE: str(self.points)}
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.training_service", self.name, self.folder],
                env={**os.environ, **chaos},
                stdout=log,
                stderr=log,
            )

    @cached_property
    def stage(self) -> Stage:
        return open_stage(self.name, self.folder)

    def heard(self) -> list[dict[str, Any]]:
        path = self.folder / HEARD
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def attempts(self) -> list[list[dict[str, Any]]]:
        """What was heard, a list for each time that the job was begun."""
        found: list[list[dict[str, Any]]] = []
        for line in self.heard():
            if line["kind"] == "begin":
                found.append([])
            found[-1].append(line)
        return found

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def job(self) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children()
            return children[0] if children else None
        return None

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, none while they are being started."""
        job = self.job()
        if job is None:
            return []
        if self.name == "tuner":
            return [job]
        with suppress(psutil.NoSuchProcess):
            return [p for p in job.children(recursive=True) if "RANK" in _environment(p)]
        return []

    def kill(self, kill: Kill, draw: random.Random) -> bool:
        """Whether the one to be killed was there to be killed."""
        job, ranks = self.job(), self.ranks()
        if job is None:
            return False
        victim = {"service": self._process.pid, "launcher": job.pid, "job": job.pid}.get(kill.whom)
        if kill.whom == "rank":
            victim = draw.choice(ranks).pid if ranks else job.pid
        assert victim is not None
        with suppress(ProcessLookupError):
            (os.killpg if kill.whom == "job" else os.kill)(victim, signal.SIGKILL)
            return True
        return False

    def restart(self) -> None:
        """Another process of the service in place of one that was killed."""
        self._process.wait()
        self._start()

    def remains(self) -> list[psutil.Process]:
        """Processes of the job, whoever their parent is by now."""
        own = str(self.folder)
        return [p for p in psutil.process_iter() if own in _line(p) and p.pid != self._process.pid]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _environment(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.Error):
        return process.environ()
    return {}


def _wait(condition: Callable[[], object], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _steps(attempt: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """The measurements of each step that an attempt told of."""
    return {line["completed"]: line["metrics"] for line in attempt if line.get("phase") == "train"}


class Bench:
    """One stage, prepared once; ``truth`` is what its undisturbed work came to."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._folder = directory / name / "work"
        self._template = directory / name / "template"
        open_stage(name, self._folder).prepare()
        self._folder.rename(self._template)  # work is done where content says that it lies
        service = Service(name, self._folder, self._template)
        try:
            assert _wait(service.is_over, _TRAINING_SECONDS), "undisturbed, it did not end"
            self.truth = service.stage.ended()
            (attempt,) = service.attempts()
        finally:
            service.stop()
        assert len(self.truth.weights) == service.stage.total_steps // service.stage.interval_steps
        assert not self.truth.state.startswith("FAILED"), self.truth.state
        self.seconds = attempt[-1]["time"] - attempt[0]["time"]
        self.points = _points_of(service)

    def disturb(self, kills: Iterator[Kill], count: int, draw: random.Random) -> Told:
        """One training with ``count`` kills, or as many as find something to kill."""
        told = Told()
        service = Service(self.name, self._folder, self._template)
        try:
            for number in range(1, count + 1):
                kill = next(kills)
                if not self._strike(service, kill, number, draw, told):
                    break
                told.kills.append(str(kill))
            if not _wait(service.is_over, _TRAINING_SECONDS):
                told.violations.append("it did not end")
                return told
            self._check(service, told)
        finally:
            service.stop()
        return told

    def _strike(
        self, service: Service, kill: Kill, number: int, draw: random.Random, told: Told
    ) -> bool:
        """Wait for the ``number``-th attempt to come to where the kill is to happen, and kill.

        Then wait until the job has ended: whoever is left of it must not hang.
        """
        if kill.when == "point":
            # A job that goes on from a checkpoint passes its points fewer times.
            hit = max(1, kill.hit // number)
            service.plan(Plan(f"plan-{number}", kill.point, hit))
        if not _wait(lambda: len(service.attempts()) >= number or service.is_over(), 60):
            told.violations.append(f"it was not begun again before the kill of the {kill}")
            return False

        def attempt() -> list[dict[str, Any]]:
            return service.attempts()[number - 1]

        def has_ended() -> bool:
            return bool(attempt()[-1]["kind"] == "end")

        if not _come_to(service, kill, attempt, has_ended, number):
            return False
        killed = time.monotonic()
        if kill.when != "point" and not service.kill(kill, draw):
            return False

        def is_gone() -> bool:
            return not service.remains() if kill.whom == "service" else has_ended()

        if not _wait(is_gone, _END_SECONDS):
            told.violations.append(f"the job hung after the kill of the {kill}")
            return False
        told.end_seconds.append(time.monotonic() - killed)
        if kill.whom == "service":
            service.restart()
        return not has_ended() or attempt()[-1]["outcome"] != "JobResult"

    def _check(self, service: Service, told: Told) -> None:
        ended, kills = service.stage.ended(), ", then ".join(told.kills)

        def broken(what: str) -> None:
            told.violations.append(f"{self.name}: {what} (killed: {kills})")

        for what in _differences(ended, self.truth):
            broken(what)
        furthest = 0
        for attempt in service.attempts():
            steps = _steps(attempt)
            for step, metrics in steps.items():
                known = self.truth.curve[step]
                if any(metrics[name] != known[name] for name in service.stage.measured):
                    broken(f"step {step} measured {metrics}, undisturbed {known}")
                    break
            redone = max(0, furthest - min(steps) + 1) if steps and furthest else 0
            told.steps_redone.append(redone)
            if redone > service.stage.interval_steps:
                broken(f"{redone} steps were done again")
            furthest = max(furthest, *steps) if steps else furthest
        if left := [_line(process) for process in service.remains()]:
            broken(f"processes were left: {left}")
        output = service.stage.output_directory()
        if files := list(output.rglob(f"{manifest.TEMPORARY_PREFIX}*")):
            broken(f"unfinished files were left: {files}")


def _come_to(
    service: Service,
    kill: Kill,
    attempt: Callable[[], list[dict[str, Any]]],
    has_ended: Callable[[], bool],
    number: int,
) -> bool:
    """Wait for the moment of ``kill``; False when the job had ended before."""
    if kill.when == "point":
        fired = service.points / f"plan-{number}.{crash_points.FIRED}"
        return _wait(lambda: fired.exists() or has_ended(), _TRAINING_SECONDS) and fired.exists()
    if kill.when == "moment":
        begun = attempt()[0]["time"]
        _wait(lambda: time.time() >= begun + kill.seconds or has_ended(), _TRAINING_SECONDS)
        return not has_ended()
    _wait(lambda: max(_steps(attempt()), default=0) >= kill.step or has_ended(), _TRAINING_SECONDS)
    if kill.when == "writing":
        output = service.stage.output_directory()
        _wait(lambda: _is_writing(output) or has_ended(), _TRAINING_SECONDS)
        time.sleep(kill.seconds)
    return not has_ended()


def _is_writing(output: Path) -> bool:
    folders = (output, output / "resume", output / "training_state")
    prefixes = tuple(f"{manifest.TEMPORARY_PREFIX}{name}" for name in ("step", "checkpoint", "0"))
    with suppress(FileNotFoundError):
        return any(
            name.startswith(prefixes)
            for folder in folders
            if folder.exists()
            for name in os.listdir(folder)
        )
    return False


def _points_of(service: Service) -> list[tuple[str, int]]:
    """The points that the job passed as it saved and spoke, each time that it did."""
    lines = (service.points / crash_points.POINTS).read_text().splitlines()
    passed = {(line["point"], line["hit"]) for line in map(json.loads, lines)}
    return sorted(p for p in passed if p[0].split()[-2] in _POINTS_OF and ".jobs." in p[0])


def _differences(ended: Ended, truth: Ended) -> Iterator[str]:
    if ended.state != truth.state:
        yield f"it ended as {ended.state!r}, undisturbed as {truth.state!r}"
    if ended.facts != truth.facts:
        yield f"it told {dict(ended.facts)}, undisturbed {dict(truth.facts)}"
    if ended.curve != truth.curve:
        steps = {*ended.curve, *truth.curve}
        differ = [step for step in sorted(steps) if ended.curve.get(step) != truth.curve.get(step)]
        yield f"what is kept of steps {differ} differs"
    if ended.weights != truth.weights:
        yield f"the weights are {dict(ended.weights)}, undisturbed {dict(truth.weights)}"


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """``runs`` kills, spread over the stages, at most three in one training."""
    draw = random.Random(seed)
    violations: list[str] = []
    everything = Told()
    trainings = differed = 0
    for number, name in enumerate(STAGES):
        wanted = runs // len(STAGES) + (number < runs % len(STAGES))
        if not wanted:
            continue
        bench = Bench(name, directory)
        say(f"{name}: undisturbed in {bench.seconds:.0f} s; {len(bench.points)} crash points")
        drawn_from = (max(bench.truth.curve), bench.seconds, bench.points)
        kills, done = draw_kills(name, *drawn_from, draw), 0
        for _ in range(2 * wanted):
            if done >= wanted:
                break
            told = bench.disturb(kills, min(_KILLS_IN_ONE_TRAINING, wanted - done), draw)
            done, trainings = done + len(told.kills), trainings + 1
            violations += told.violations
            differed += bool(told.violations)
            everything.kills += told.kills
            everything.steps_redone += told.steps_redone
            everything.end_seconds += told.end_seconds
            said = "BROKEN" if told.violations else "kept"
            say(f"{name}: {said}: {done} of {wanted} kills: {'; '.join(told.kills)}")
    figures = {
        "kills": len(everything.kills),
        "disturbed trainings": trainings,
        "steps done again, at most": max(everything.steps_redone, default=0),
        "disturbed trainings that differed": differed,
        "slowest end of a killed job, seconds": max(everything.end_seconds, default=0.0),
    }
    return Outcome(NAME, len(everything.kills), violations, figures)
