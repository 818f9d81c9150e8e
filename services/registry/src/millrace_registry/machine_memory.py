"""What the machine's memory is, and what the engines of an endpoint have of it.

Read from /proc (https://man7.org/linux/man-pages/man5/proc.5.html).
"""

import os
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_STUB = "triton_python_backend_stub"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GRAIN_BYTES = 16 * 2**20
_DEFAULT_SHARE = 0.6


def default_budget_bytes(proc: Path = _PROC) -> int:
    """60 % of what is available now: the other services, and the cache of files, need the rest.

    Raises:
        OSError, ValueError: /proc/meminfo does not say.
    """
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(int(rest.split()[0]) * 1024 * _DEFAULT_SHARE)
    raise ValueError("/proc/meminfo has no MemAvailable")


def engine_bytes(repository: Path, proc: Path = _PROC) -> Mapping[tuple[str, int], int]:
    """Resident bytes of the processes that Triton runs versions of ``repository`` in.

    Each of the Python backend's has the path of its ``model.py`` for its first argument. Empty
    where Triton is on another machine, or in a container of its own. In steps of 16 MiB.
    """
    found: dict[tuple[str, int], int] = {}
    root = repository.resolve()
    for process in proc.glob("[0-9]*"):
        try:
            program, model, *_ = (process / "cmdline").read_bytes().decode().split("\0")
            resident = int((process / "statm").read_text().split()[1]) * _PAGE_BYTES
            if not program.endswith(_STUB):
                continue
            name, version, _ = Path(model).resolve().relative_to(root).parts
            key = (name, int(version))
        except (OSError, ValueError):  # it ended meanwhile, or is of another repository
            continue
        found[key] = found.get(key, 0) + resident
    return {key: -(-size // _GRAIN_BYTES) * _GRAIN_BYTES for key, size in found.items()}
