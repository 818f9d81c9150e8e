"""Disturb nats-server in every way while facts flow, and see that none is lost.

After each disturbance, every fact that was recorded before the server was back must be
published, have its effect once, and be seen by a subscriber that replays the stream from its
start. As the supervisor of the mesh does, the harness starts a server again that says it is not
healthy.
"""

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats

from millrace.topology import STREAM
from millrace_testkit.history import replay
from millrace_testkit.servers import NatsServer
from tests.chaos import disks
from tests.chaos.nats_flow import Flow, names
from tests.chaos.outcome import Outcome, Say, percentile

# A history that is published again is handled again before anything newer is.
_GENEROUS_SECONDS = 300.0
_POLL_SECONDS = 0.1
_SPARE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Pace:
    """How long disturbances last. The first of its kind lasts longest.

    Attributes:
        down_seconds: between the server's death and its next start; then a later one's.
        suspended_seconds: between SIGSTOP and SIGCONT; then a later one's.
        kills: how often it is killed, every 1.5 s.
        between_seconds: the flow before an old copy takes its place, and with a full disk.
    """

    down_seconds: tuple[float, float] = (60.0, 4.0)
    suspended_seconds: tuple[float, float] = (20.0, 6.0)
    kills: int = 6
    between_seconds: float = 4.0


SHORT = Pace((3.0, 3.0), (3.0, 3.0), kills=2, between_seconds=1.0)


@dataclass
class Scene:
    """A nats-server, the flow through it, and what is to be said about them."""

    server: NatsServer
    flow: Flow
    directory: Path
    draw: random.Random
    pace: Pace
    made: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)

    def duration(self, kind: str, first_and_later: tuple[float, float]) -> float:
        return first_and_later[self.made[kind] > 1]


Disturb = Callable[[Scene], Awaitable[None]]


async def _kill_again_and_again(scene: Scene) -> None:
    for _ in range(scene.pace.kills):
        await asyncio.sleep(1.5)
        scene.server.kill()
        await scene.start()


async def _keep_down(scene: Scene) -> None:
    scene.server.kill()
    await asyncio.sleep(scene.duration("down", scene.pace.down_seconds))
    await scene.start()


async def _suspend(scene: Scene) -> None:
    scene.server.suspend()
    await asyncio.sleep(scene.duration("suspend", scene.pace.suspended_seconds))
    scene.server.resume()


async def _delete_stream(scene: Scene) -> None:
    client = await nats.connect(scene.server.url)
    await client.jetstream().delete_stream(STREAM)
    await client.close()


async def _flip_a_bit(scene: Scene) -> None:
    """In a file of the stream's, mostly the messages', of a server that runs or does not."""
    end = scene.draw.choice((scene.server.kill, scene.server.stop, None))
    if end is not None:
        await asyncio.to_thread(end)
    _flip(scene)
    if end is None:
        await asyncio.sleep(1.0)
        scene.server.kill()
    await scene.start()


def _flip(scene: Scene) -> None:
    stream = next(scene.server.store.rglob(f"streams/{STREAM}"))
    files = sorted(path for path in stream.rglob("*") if path.is_file() and path.stat().st_size)
    blocks = [path for path in files if path.suffix == ".blk"]
    path = scene.draw.choice(blocks if blocks and scene.draw.random() < 0.8 else files)
    position = scene.draw.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << scene.draw.randrange(8))]))
    scene.notes["last flip"] = f"{path.relative_to(stream)} at {position}"


async def _restore_old_copy(scene: Scene) -> None:
    copy = scene.directory / "old-copy"
    scene.server.kill()
    shutil.copytree(scene.server.store, copy)
    await scene.start()
    await asyncio.sleep(scene.pace.between_seconds)
    # Relays that start anew remember nothing of what the store held.
    anew = scene.made["old copy"] % 2 == 1
    if anew:
        await scene.flow.stop_relays()
    scene.server.kill()
    scene.server.forget()
    copy.rename(scene.server.store)
    await scene.start()
    if anew:
        await scene.flow.start_relays()


async def _fill_disk(scene: Scene) -> None:
    async with _on_small_disk(scene) as disk:
        ballast = disks.fill(disk)
        await asyncio.sleep(scene.pace.between_seconds)
        ballast.unlink()
        await _until_healthy(scene)
        await asyncio.sleep(0.5)


@asynccontextmanager
async def _on_small_disk(scene: Scene) -> AsyncIterator[Path]:
    """The server's store on a disk with room for little more than it holds."""
    usual = scene.server.store
    scene.server.kill()
    size = sum(path.stat().st_size for path in usual.rglob("*") if path.is_file())
    with disks.small_disk(scene.directory / "disk", size + _SPARE_BYTES) as disk:
        scene.server.store = disk / "store"
        shutil.copytree(usual, scene.server.store)
        await scene.start()
        yield disk
        scene.server.kill()
        shutil.rmtree(usual)
        shutil.copytree(scene.server.store, usual)
        scene.server.store = usual
    await scene.start()


def _why_no_disk(directory: Path) -> str | None:
    try:
        with disks.small_disk(directory / "probe", 1024 * 1024):
            return None
    except disks.DisksNotAllowed as error:
        return str(error)


DISTURBANCES: dict[str, Disturb] = {
    "kills": _kill_again_and_again,
    "down": _keep_down,
    "suspend": _suspend,
    "deleted": _delete_stream,
    "flip": _flip_a_bit,
    "old copy": _restore_old_copy,
    "full disk": _fill_disk,
}
_LOSING = {"deleted", "flip", "old copy", "full disk"}
_WEIGHTS = {"flip": 4, "old copy": 2}


@dataclass
class Measured:
    """What the disturbances led to, in seconds since the server was back."""

    violations: list[str] = field(default_factory=list)
    published: list[float] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)
    history: list[float] = field(default_factory=list)


def run(runs: int, seed: int, directory: Path, say: Say, *, pace: Pace = Pace()) -> Outcome:
    """Each kind once, then as drawn, until there were ``runs`` disturbances."""
    return asyncio.run(_run(runs, seed, directory, say, pace))


async def _run(runs: int, seed: int, directory: Path, say: Say, pace: Pace) -> Outcome:
    server = NatsServer(directory / "nats")
    flow = Flow(directory, server.url)
    scene = Scene(server, flow, directory, random.Random(seed), pace)
    measured = Measured()
    kinds = list(DISTURBANCES)
    why_no_disk = _why_no_disk(directory)
    if why_no_disk:
        kinds.remove("full disk")
        say(f"the disk is never full: {why_no_disk}")
    await scene.start()
    try:
        async with flow.running():
            await asyncio.sleep(2.0)
            for number, kind in enumerate(_schedule(runs, kinds, scene.draw), start=1):
                scene.made[kind] = scene.made.get(kind, 0) + 1
                before = len(measured.violations)
                await _disturb(scene, kind, measured)
                for violation in measured.violations[before:]:
                    say(f"{number} {violation}")
                say(
                    f"{number}/{runs} {kind} {scene.notes.pop('last flip', '')}: {_times(measured)}"
                )
    finally:
        server.resume()
        server.kill()
    return Outcome("nats", runs, measured.violations, _figures(scene, measured))


def _schedule(runs: int, kinds: Sequence[str], draw: random.Random) -> Sequence[str]:
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    once = draw.sample(list(kinds), len(kinds))
    return (once + draw.choices(list(kinds), weights, k=runs))[:runs]


async def _disturb(scene: Scene, kind: str, measured: Measured) -> None:
    flow = scene.flow
    settled = [len(producer.ids()) for producer in flow.producers]
    flow.pause(False)
    await DISTURBANCES[kind](scene)
    back = time.monotonic()
    # All of this runs in one process, which would not catch up while more is recorded.
    flow.pause(True)
    recorded = flow.recorded()
    await _until_healthy(scene)

    async def wait(what: str, times: list[float], condition: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(_GENEROUS_SECONDS):
                while not await condition():
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            measured.violations.append(f"{kind}: {what}, {_GENEROUS_SECONDS:g} s after")
        times.append(time.monotonic() - back)

    async def is_published() -> bool:
        return await asyncio.to_thread(flow.is_published, recorded)

    waiting = names(recorded)

    async def have_effects() -> bool:
        waiting.difference_update(flow.effects.names & waiting)
        return not waiting

    async def is_complete() -> bool:
        return not await _missing(scene, recorded)

    await wait("facts are not published", measured.published, is_published)
    await wait("facts have no effect", measured.effects, have_effects)
    await wait("the stream's history is not complete", measured.history, is_complete)
    lost, doubled = await asyncio.to_thread(flow.wrong_effects, recorded)
    if lost:
        measured.violations.append(f"{kind}: {lost} facts had no effect that lasted")
    if doubled:
        measured.violations.append(f"{kind}: {doubled} facts had their effect more than once")
    if kind not in _LOSING and not await _is_in_order(scene, settled):
        measured.violations.append(f"{kind}: facts lie in the stream in another order")


async def _until_healthy(scene: Scene) -> None:
    for _ in range(5):
        for _ in range(20):
            if await asyncio.to_thread(scene.server.is_healthy):
                return
            await asyncio.sleep(_POLL_SECONDS)
        scene.server.kill()
        await scene.start()


async def _seen(scene: Scene) -> Sequence[str]:
    return await asyncio.to_thread(lambda: asyncio.run(replay(scene.server.url)))


async def _missing(scene: Scene, counts: Sequence[int]) -> set[str]:
    try:
        seen = set(await _seen(scene))
    except (nats.errors.Error, OSError):  # it is being made anew
        seen = set()
    pairs = zip(scene.flow.producers, counts, strict=True)
    return {one for producer, count in pairs for one in producer.ids()[:count]} - seen


async def _is_in_order(scene: Scene, settled: Sequence[int]) -> bool:
    """Whether what was recorded since lies in the order of its outbox."""
    places = {one: place for place, one in reversed(list(enumerate(await _seen(scene))))}
    for producer, count in zip(scene.flow.producers, settled, strict=True):
        found = [places[one] for one in producer.ids()[count:] if one in places]
        if found != sorted(found):
            return False
    return True


def _times(measured: Measured) -> str:
    return (
        f"published after {measured.published[-1]:.1f} s, effects after "
        f"{measured.effects[-1]:.1f} s, history after {measured.history[-1]:.1f} s"
    )


def _figures(scene: Scene, measured: Measured) -> dict[str, float | int | str]:
    kinds = {f"disturbed by: {kind}": scene.made.get(kind, 0) for kind in DISTURBANCES}
    return {
        **kinds,
        "facts recorded": sum(scene.flow.recorded()),
        "deliveries": scene.flow.effects.deliveries,
        "all published, median_seconds": percentile(measured.published, 0.5),
        "all published, max_seconds": max(measured.published, default=0.0),
        "all effects, median_seconds": percentile(measured.effects, 0.5),
        "all effects, max_seconds": max(measured.effects, default=0.0),
        "history complete, median_seconds": percentile(measured.history, 0.5),
        "history complete, max_seconds": max(measured.history, default=0.0),
    }
