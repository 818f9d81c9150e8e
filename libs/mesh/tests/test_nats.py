import json
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from millrace_client.home import Home
from millrace_mesh import nats
from millrace_mesh.layout import Layout


def jsz(monitor: str) -> dict[str, object]:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"{monitor}/jsz?config=true", timeout=2) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.05)
    raise AssertionError("NATS did not answer")


def serve(configuration: Path, monitor: str) -> dict[str, object]:
    process = subprocess.Popen(
        [nats.binary(), "--config", str(configuration)], stderr=subprocess.DEVNULL
    )
    try:
        return jsz(monitor)
    finally:
        process.terminate()
        process.wait(10)


def test_the_real_server_says_that_it_syncs_every_message(tmp_path: Path, free_base_port: int):
    layout = Layout(Home(tmp_path), free_base_port)
    document = serve(nats.write_configuration(layout), layout.url("nats.monitor"))
    assert nats.durability(document).startswith("JetStream is on and syncs every message to ")


def test_a_server_with_the_default_sync_interval_is_refused(tmp_path: Path, free_base_port: int):
    layout = Layout(Home(tmp_path), free_base_port)
    path = nats.write_configuration(layout)
    path.write_text(path.read_text().replace("sync_interval: always", ""))
    document = serve(path, layout.url("nats.monitor"))
    with pytest.raises(nats.NotDurable, match="every 120 s"):
        nats.durability(document)


def test_a_server_without_jetstream_is_refused():
    with pytest.raises(nats.NotDurable, match="without JetStream"):
        nats.durability({"disabled": True})
