"""Starting and stopping from another process, with a supervisor that is real and small."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from millrace_client.home import Home
from millrace_mesh import control, state

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from millrace_client.home import Home
from millrace_mesh import state
from millrace_mesh.layout import Layout
from millrace_mesh.log import MeshLog
from millrace_mesh.probes import NotReady
from millrace_mesh.processes import ProcessSpec
from millrace_mesh.supervisor import Supervisor

async def when_told():
    if not (home.path / "ready").exists():
        raise NotReady

home, command = Home(Path(sys.argv[1])), sys.argv[2:]
spec = ProcessSpec("a", command, {}, "nowhere", when_told)
with state.hold_lock(home.lock_file):
    asyncio.run(Supervisor(Layout(home), [spec], MeshLog(home.logs, ["a"], None)).run())
"""
SLEEP = ["/bin/sleep", "600"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def start(home: Home, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(home.path), *command])


def test_a_mesh_is_found_waited_for_and_stopped(home: Home):
    assert control.find(home) is None
    assert control.stop(home) is False
    (home.path / "ready").touch()
    with start(home, *SLEEP) as supervisor:
        running = control.wait_until_ready(home, supervisor)
        assert running.pid == supervisor.pid
        assert control.find(home) == running
        assert control.stop(home) is True
        assert supervisor.wait(5) == 0
    assert control.find(home) is None


def test_a_supervisor_that_does_not_stop_is_killed(home: Home):
    stubborn = (
        "import signal,sys,time; from pathlib import Path; from millrace_mesh import state\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "with state.hold_lock(Path(sys.argv[1])): time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", stubborn, str(home.lock_file)]) as supervisor:
        while control.find(home) is None:
            time.sleep(0.05)
        time.sleep(0.1)
        control.stop(home, timeout_seconds=0.5)
        assert supervisor.wait(5) != 0


def test_a_start_without_hope_is_given_up_with_the_last_lines(home: Home):
    with start(home, "/bin/sh", "-c", "echo no such module; exit 1") as supervisor:
        with pytest.raises(control.StartFailed, match=r"(?s)a ended with status 1.*no such module"):
            control.wait_until_ready(home, supervisor)
        assert supervisor.wait(5) == 0


def test_a_supervisor_that_ends_at_once_is_told_with_its_words(home: Home):
    home.logs.mkdir()
    (home.logs / "supervisor.log").write_text("millrace: port 8080 is taken\n")
    with subprocess.Popen([sys.executable, "-c", ""]) as supervisor:
        with pytest.raises(control.StartFailed, match="port 8080 is taken"):
            control.wait_until_ready(home, supervisor)


def test_the_state_of_an_earlier_mesh_is_not_taken_for_this_ones(home: Home):
    with state.hold_lock(home.lock_file):
        home.state_file.write_text('{"pid": 1, "phase": "ready"}')
        found = control.find(home)
    assert found is not None
    assert not found.is_ready
