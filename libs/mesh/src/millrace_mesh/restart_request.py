"""A request for a rolling restart: a small file, and SIGHUP to the supervisor that reads it.

What becomes of it is in the mesh's state (``state.RestartState``), under the request's id.
"""

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RestartRequest:
    """Services to restart, one after the other."""

    services: Sequence[str]
    id: str = field(default_factory=lambda: secrets.token_hex(8))


def write(path: Path, request: RestartRequest) -> None:
    """Replace the file whole: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(request)))
    temporary.replace(path)


def read(path: Path) -> RestartRequest:
    document = json.loads(path.read_text())
    return RestartRequest(tuple(document["services"]), document["id"])
