"""A gateway that is killed amid a batch: ``python -m millrace_gateway``, SIGKILL, and again."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import Answer
from gateway_process import Gateway, Services
from test_batches import CHAT, ended, jsonl, line, read, upload

from millrace_testkit.servers import wait_until

LINES = 24


@pytest.fixture
def services() -> Iterator[Services]:
    found = Services()
    yield found
    found.end()


@pytest.fixture
def gateway(tmp_path: Path, services: Services) -> Iterator[Gateway]:
    found = Gateway(tmp_path, services, BATCH_CONCURRENCY="3")
    found.start()
    yield found
    found.kill()


def test_a_batch_survives_its_gateway(services: Services, gateway: Gateway) -> None:
    """What was answered is not asked again; what was under way is; each line is told once."""
    held = threading.Event()

    def answer_to(request: dict[str, Any]) -> Answer:
        is_late = not held.is_set() and len(services.triton.requests) > LINES // 2
        return Answer([request["prompt"]], pause_seconds=600 if is_late else 0)

    services.triton.answer_to = answer_to
    with gateway.client() as client:
        made = client.batches.create(
            input_file_id=upload(client, jsonl([line(n) for n in range(LINES)])),
            endpoint=CHAT,
            completion_window="24h",
        )

        def is_half_done() -> bool:
            counts = client.batches.retrieve(made.id).request_counts
            return counts is not None and counts.completed == LINES // 2

        wait_until(is_half_done, 60, "half of the lines are answered")
        wait_until(lambda: services.triton.running == 3, 30, "three more are under way")
    gateway.kill()
    held.set()
    gateway.start()
    with gateway.client() as client:
        batch = ended(client, made)
        assert batch.status == "completed" and batch.request_counts is not None
        assert batch.request_counts.completed == LINES
        output = read(client, batch.output_file_id)
    assert [one["custom_id"] for one in output] == [f"line-{n}" for n in range(LINES)]
    for n, one in enumerate(output):
        assert f"q{n}<" in one["response"]["body"]["choices"][0]["message"]["content"]
    assert len(services.triton.requests) == LINES + 3
    purposes = [file.purpose for file in services.data.files.rows.values()]
    assert len(purposes) == 2, "the input and one output"
