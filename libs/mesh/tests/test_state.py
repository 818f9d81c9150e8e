import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from millrace_mesh import shared_secrets, state


def test_one_supervisor_a_home(tmp_path: Path):
    lock = tmp_path / "lock"
    code = (
        "import sys, time, pathlib; from millrace_mesh import state\n"
        "with state.hold_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert state.running_pid(lock) == holder.pid
        with pytest.raises(state.AlreadyRunning, match=str(holder.pid)), state.hold_lock(lock):
            pass
        holder.kill()
    # The lock went with its holder, though the file still holds a pid.
    assert lock.read_text() == str(holder.pid)
    assert state.running_pid(lock) is None
    with state.hold_lock(lock):
        pass


def test_nobody_runs_where_nothing_is(tmp_path: Path):
    assert state.running_pid(tmp_path / "lock") is None


def test_the_state_file_says_how_often_each_was_restarted(tmp_path: Path):
    process = state.ProcessState("a", "127.0.0.1:1", starts=3)
    mesh = state.MeshState(1, state.READY, 8080, "http://x", "x", time.time(), processes=[process])
    state.write(tmp_path / "mesh.json", mesh)
    document = json.loads((tmp_path / "mesh.json").read_text())
    assert document["processes"][0]["restarts"] == 2


def test_secrets_are_made_once_and_private(tmp_path: Path):
    first = shared_secrets.load_or_make(tmp_path / "secrets")
    assert shared_secrets.load_or_make(tmp_path / "secrets") == first
    assert len(set(first.values())) == len(shared_secrets.NAMES)
    for name in shared_secrets.NAMES:
        mode = (tmp_path / "secrets" / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
