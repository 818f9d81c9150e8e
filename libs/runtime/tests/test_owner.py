"""Whose end can be told, and whose cannot."""

import os
import signal
import subprocess
import sys

from millrace_runtime import owner


def owner_of(pid: int) -> str:
    """What the process ``pid`` would call itself."""
    place = owner.this_process().rpartition("/")[0].rpartition("/")[0]
    return f"{place}/{pid}/{owner._start_ticks(pid)}"


def test_a_process_that_lives_has_not_ended() -> None:
    assert not owner.has_ended(owner.this_process())


def test_a_killed_process_has_ended_also_before_its_parent_has_noticed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = owner_of(process.pid)
        assert not owner.has_ended(name)
        process.send_signal(signal.SIGSTOP)
        assert not owner.has_ended(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie still
        assert owner.has_ended(name)
    assert owner.has_ended(name)


def test_another_process_under_the_same_number_is_not_the_owner() -> None:
    place, _, _start = owner.this_process().rpartition("/")
    assert owner.has_ended(f"{place}/1")


def test_nothing_is_known_of_other_machines_and_of_other_names() -> None:
    assert not owner.has_ended("elsewhere/4026531836/999999999/12")
    assert not owner.has_ended("worker-7")
    assert not owner.has_ended("")
