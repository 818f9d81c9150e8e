"""The supervisor over small real processes."""

import asyncio
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from millrace_client.home import Home
from millrace_mesh import control, state
from millrace_mesh.layout import Layout
from millrace_mesh.log import MeshLog
from millrace_mesh.nats import NotDurable
from millrace_mesh.probes import NotReady, Probe
from millrace_mesh.processes import ProcessSpec
from millrace_mesh.restart_request import RestartRequest
from millrace_mesh.supervisor import Supervisor

TIMEOUT_SECONDS = 15


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


SLEEP = python("import time; print('started', flush=True); time.sleep(600)")
STUBBORN = python(
    """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    time.sleep(600)
    """
)


async def at_once() -> None:
    return None


def when(path: Path) -> Probe:
    async def probe() -> None:
        if not path.exists():
            raise NotReady("no file")

    return probe


def spec(name: str, command: list[str], **fields: object) -> ProcessSpec:
    defaults = {"environment": os.environ, "address": "nowhere", "is_ready": at_once}
    return ProcessSpec(name=name, command=command, **{**defaults, **fields})


class Mesh:
    """A supervisor at work in this loop, its log, and its state file."""

    def __init__(self, home: Path, specs: list[ProcessSpec]) -> None:
        self.home = Home(home)
        self.output = io.StringIO()
        self.log = MeshLog(self.home.logs, [s.name for s in specs], self.output)
        self.supervisor = Supervisor(Layout(self.home), specs, self.log)

    @property
    def state(self) -> dict[str, object]:
        return json.loads(self.home.state_file.read_text())

    def process(self, name: str) -> dict[str, object]:
        return next(p for p in self.state["processes"] if p["name"] == name)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not (self.home.state_file.exists() and condition()):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running(home: Path, *specs: ProcessSpec) -> AsyncIterator[Mesh]:
    mesh = Mesh(home, list(specs))
    task = asyncio.create_task(mesh.supervisor.run())
    try:
        yield mesh
        mesh.supervisor.stop()
        await asyncio.wait_for(task, TIMEOUT_SECONDS)
    finally:
        mesh.supervisor.stop()
        mesh.supervisor.stop()
        await asyncio.gather(task, return_exceptions=True)
        mesh.log.close()


def test_it_is_ready_when_all_are_and_stops_them_all(tmp_path: Path):
    late = tmp_path / "late"

    async def scenario() -> None:
        async with running(
            tmp_path, spec("a", SLEEP), spec("b", SLEEP, is_ready=when(late))
        ) as mesh:
            await mesh.until(lambda: mesh.process("a")["phase"] == state.READY)
            assert mesh.state["phase"] == state.STARTING
            late.touch()
            await mesh.until(lambda: mesh.state["phase"] == state.READY)
            pids = [mesh.process(name)["pid"] for name in "ab"]
        assert mesh.state["phase"] == state.STOPPED
        assert not any(psutil.pid_exists(pid) for pid in pids)

    asyncio.run(scenario())


def test_what_is_killed_is_started_again_and_ready_again(tmp_path: Path):
    async def scenario() -> None:
        async with running(tmp_path, spec("a", SLEEP)) as mesh:
            await mesh.until(lambda: mesh.state["phase"] == state.READY)
            first = mesh.process("a")["pid"]
            os.kill(first, signal.SIGKILL)
            await mesh.until(lambda: mesh.process("a")["restarts"] == 1)
            await mesh.until(lambda: mesh.process("a")["phase"] == state.READY)
            assert mesh.process("a")["pid"] != first
            assert mesh.process("a")["last_end"] == "was ended by SIGKILL"

    asyncio.run(scenario())


def test_what_always_ends_is_started_at_a_falling_pace(tmp_path: Path):
    times = tmp_path / "times"
    code = f"import time; open({str(times)!r}, 'a').write(f'{{time.time()}}\\n')"

    async def scenario() -> None:
        async with running(tmp_path, spec("a", python(code))) as mesh:
            await mesh.until(lambda: times.exists() and len(times.read_text().split()) >= 4)

    asyncio.run(scenario())
    starts = [float(line) for line in times.read_text().split()]
    first, second, third = (b - a for a, b in itertools.pairwise(starts[:4]))
    assert first > 0.25
    assert second > 0.5
    assert third > 1


def test_what_cannot_be_started_is_tried_again(tmp_path: Path):
    async def scenario() -> None:
        async with running(tmp_path, spec("a", ["/no/such/program"])) as mesh:
            await mesh.until(lambda: "could not be started" in mesh.process("a")["last_end"])

    asyncio.run(scenario())


def test_the_highest_tier_stops_first(tmp_path: Path):
    order = tmp_path / "order"
    code = """
        import signal, sys, time
        def end(*_):
            time.sleep(0.3)
            open({path!r}, "a").write("{name}\\n")
            sys.exit()
        signal.signal(signal.SIGTERM, end)
        print("listening", flush=True)
        time.sleep(600)
        """
    specs = [
        spec(name, python(code.format(path=str(order), name=name)), tier=tier)
        for name, tier in (("ground", 0), ("middle", 1), ("edge", 2))
    ]

    async def scenario() -> None:
        async with running(tmp_path, *specs) as mesh:
            await mesh.until(lambda: mesh.output.getvalue().count("listening") == 3)

    asyncio.run(scenario())
    assert order.read_text().split() == ["edge", "middle", "ground"]


def test_what_does_not_stop_is_killed(tmp_path: Path):
    async def scenario() -> None:
        async with running(tmp_path, spec("a", STUBBORN, stop_seconds=0.3)) as mesh:
            await mesh.until(lambda: "deaf" in mesh.output.getvalue())
            pid = mesh.process("a")["pid"]
        assert not psutil.pid_exists(pid)
        assert "a does not stop; killing it" in mesh.output.getvalue()

    asyncio.run(scenario())


def test_what_a_process_left_behind_goes_with_it(tmp_path: Path):
    code = """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)
        sys.exit(3)
        """

    async def scenario() -> None:
        async with running(tmp_path, spec("a", python(code))) as mesh:
            await mesh.until(lambda: mesh.process("a")["last_end"] == "ended with status 3")
            pid = int(mesh.output.getvalue().split("child ")[1].split()[0])
            await mesh.until(lambda: _is_gone(pid))

    asyncio.run(scenario())


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_stays_unhealthy_is_restarted(tmp_path: Path):
    healthy = tmp_path / "healthy"
    healthy.touch()

    async def scenario() -> None:
        sick = spec("a", SLEEP, is_ready=when(healthy), unhealthy_seconds=0.4)
        async with running(tmp_path, sick) as mesh:
            await mesh.until(lambda: mesh.state["phase"] == state.READY)
            healthy.unlink()
            await mesh.until(lambda: mesh.process("a")["restarts"] == 1)
            healthy.touch()
            await mesh.until(lambda: mesh.process("a")["phase"] == state.READY)

    asyncio.run(scenario())


def test_a_server_that_could_lose_facts_stops_the_mesh(tmp_path: Path):
    async def confirm() -> str:
        raise NotDurable("syncs every 120 s")

    async def scenario() -> None:
        mesh = Mesh(tmp_path, [spec("nats", SLEEP, confirm=confirm), spec("b", SLEEP)])
        with pytest.raises(NotDurable):
            await asyncio.wait_for(mesh.supervisor.run(), TIMEOUT_SECONDS)
        mesh.log.close()
        assert mesh.state["phase"] == state.STOPPED
        assert mesh.state["failure"] == "syncs every 120 s"

    asyncio.run(scenario())


def test_children_die_with_a_killed_supervisor(tmp_path: Path):
    code = f"""
        import asyncio, os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_supervisor as t
        from pathlib import Path
        mesh = t.Mesh(Path({str(tmp_path)!r}), [t.spec("a", t.STUBBORN), t.spec("b", t.SLEEP)])
        asyncio.run(mesh.supervisor.run())
        """
    supervisor = subprocess.Popen(python(code))
    state_file = Home(tmp_path).state_file
    try:
        _wait_until(lambda: state_file.exists() and '"phase": "ready"' in state_file.read_text())
        processes = json.loads(state_file.read_text())["processes"]
    finally:
        supervisor.kill()
        supervisor.wait()
    _wait_until(lambda: all(_is_gone(process["pid"]) for process in processes))


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_the_log_is_kept_by_process_and_together(tmp_path: Path):
    code = "print('one', flush=True); print('no newline', end='', flush=True)"

    async def scenario() -> None:
        async with running(tmp_path, spec("a", python(code)), spec("longer", SLEEP)) as mesh:
            await mesh.until(lambda: "no newline" in mesh.output.getvalue())
        assert "a      | one\n" in mesh.output.getvalue()

    asyncio.run(scenario())
    assert (tmp_path / "logs" / "a.log").read_text().splitlines()[:2] == ["one", "no newline"]
    assert "a      | one" in (tmp_path / "logs" / "mesh.log").read_text()


LISTENING = """
    import os, signal, socket, sys, threading
    listener = socket.socket(fileno=int(os.environ["LISTENER"]))
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    listener.settimeout(0.02)
    print("serving", flush=True)
    while not stopping.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.recv(100)
        connection.sendall(str(os.getpid()).encode())
        connection.close()
    """


def listening(name: str, code: str = LISTENING, **fields: object) -> ProcessSpec:
    """A server on a socket that the supervisor holds; it answers with its process id."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    async def answers() -> int:
        return int(await asyncio.to_thread(ask, address))

    environment = {**os.environ, "LISTENER": str(listener.fileno())}
    defaults = {"listener": listener, "environment": environment, "is_ready": answers}
    return spec(name, python(code), **{**defaults, **fields})


def ask(address: tuple[str, int]) -> str:
    with socket.create_connection(address, timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(b"who are you?")
        return connection.recv(100).decode()


def test_a_rolling_restart_loses_no_connection(tmp_path: Path):
    server = listening("a")
    assert server.listener is not None
    address, answers, asking = server.listener.getsockname(), [], threading.Event()

    def clients() -> None:
        while not asking.is_set():
            answers.append(ask(address))

    async def scenario() -> None:
        async with running(tmp_path, server) as mesh:
            await mesh.until(lambda: mesh.state["phase"] == state.READY)
            asked = asyncio.create_task(asyncio.to_thread(clients))
            pids = [mesh.process("a")["pid"]]
            for _ in range(3):
                drained = await asyncio.to_thread(restart_from_outside, mesh)
                assert drained.keys() == {"a"}
                pids.append(mesh.process("a")["pid"])
            asking.set()
            await asked
            assert len(set(pids)) == 4
            assert set(answers) == {str(pid) for pid in pids}
            assert mesh.process("a")["restarts"] == 0, "what was asked for is no mishap"
            assert [pid for pid in pids[:3] if not _is_gone(pid)] == []

    asyncio.run(scenario())


def restart_from_outside(mesh: Mesh) -> dict[str, float]:
    request = RestartRequest(("a",))
    with state.hold_lock(mesh.home.lock_file):  # as ``supervisor.run`` does
        return control._restart(mesh.home, request, None)


def test_a_new_process_that_does_not_come_up_changes_nothing(tmp_path: Path):
    broken = tmp_path / "broken"
    code = f"""
        import pathlib, sys
        sys.exit(3) if pathlib.Path({str(broken)!r}).exists() else None
        """ + textwrap.indent(textwrap.dedent(LISTENING), "        ")

    async def scenario() -> None:
        async with running(tmp_path, listening("a", code)) as mesh:
            await mesh.until(lambda: mesh.state["phase"] == state.READY)
            first = mesh.process("a")["pid"]
            broken.touch()
            with pytest.raises(control.RestartFailed, match="the new a ended with status 3"):
                await asyncio.to_thread(restart_from_outside, mesh)
            assert mesh.process("a")["pid"] == first
            assert mesh.process("a")["phase"] == state.READY
            broken.unlink()
            await asyncio.to_thread(restart_from_outside, mesh)
            assert mesh.process("a")["pid"] != first

    asyncio.run(scenario())


def test_what_makes_its_own_socket_is_not_replaced(tmp_path: Path):
    async def scenario() -> None:
        async with running(tmp_path, spec("a", SLEEP)) as mesh:
            await mesh.until(lambda: mesh.state["phase"] == state.READY)
            with pytest.raises(control.RestartFailed, match="cannot be replaced"):
                await asyncio.to_thread(restart_from_outside, mesh)

    asyncio.run(scenario())


def test_only_services_can_be_asked_for(tmp_path: Path):
    with pytest.raises(control.RestartFailed, match="'nats' cannot be restarted"):
        control.restart(Home(tmp_path), ["nats"])
    with pytest.raises(control.RestartFailed, match="no mesh is ready"):
        control.restart(Home(tmp_path))
