"""Who holds a lease: a process, named so that another on the same machine can tell its end.

A lease of a process that was killed need not run out before its work goes on: whoever can see
that the owner is no more may take over at once. Seeing needs the same machine and the same
namespace of process ids (pid_namespaces(7)); of all others nothing is known, and their leases
are left to run out. A wrong guess would cost a needless takeover, never a wrong write: what
keeps writers apart is the epoch.
"""

import os
import socket
from functools import cache
from pathlib import Path


@cache
def this_process() -> str:
    """``host/namespace/pid/start``, where ``start`` is in clock ticks since the machine's."""
    return f"{_place()}/{os.getpid()}/{_start_ticks(os.getpid())}"


def has_ended(owner: str) -> bool:
    """Whether ``owner`` is known to be no more; False of a process on another machine."""
    place, _, process = owner.rpartition("/")[0].rpartition("/")
    start = owner.rpartition("/")[2]
    if place != _place() or not process.isdecimal():
        return False
    return _start_ticks(int(process)) != start


@cache
def _place() -> str:
    namespace = os.readlink("/proc/self/ns/pid").removeprefix("pid:").strip("[]")
    return f"{socket.gethostname()}/{namespace}"


def _start_ticks(pid: int) -> str:
    """When a process was started (proc_pid_stat(5), field 22); empty when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The second field is a name in parentheses and may hold anything; a zombie has ended.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
