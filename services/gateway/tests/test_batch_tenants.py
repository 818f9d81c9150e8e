"""Batches of two tenants in a gateway with one place, and the ``millrace batches`` commands."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_fakes import Answer
from gateway_mesh import Mesh
from test_batches import CHAT, ended, jsonl, line, make, read

from millrace_testkit.servers import wait_until

MILLRACE = "from millrace_client.cli import main; main()"


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path, batches=1, batch_concurrency=1, batch_turn_seconds=0.3)
    mesh.start()
    mesh.serve_routes([mesh.route(), mesh.route(tenant="acme")])
    yield mesh
    mesh.stop()


def test_a_long_batch_keeps_no_other_tenant_waiting(narrow: Mesh) -> None:
    """It makes room between two lines, and goes on where it was; none is asked twice."""
    narrow.triton.answer_to = lambda request: Answer(["ok"], pause_seconds=0.02)
    default, acme = narrow.openai(), narrow.openai(narrow.other_secret)
    long = make(default, [line(n) for n in range(5000)])  # two minutes at least
    wait_until(lambda: len(narrow.triton.requests) > 0, 30, "the long batch has begun")
    short = ended(acme, make(acme, [line(9001), line(9002)]))
    assert short.status == "completed"
    output = [one["custom_id"] for one in read(acme, short.output_file_id)]
    assert output == ["line-9001", "line-9002"]
    seen = len(narrow.triton.requests)
    wait_until(lambda: len(narrow.triton.requests) > seen + 2, 30, "the long batch goes on")
    found = default.batches.retrieve(long.id)
    assert found.status == "in_progress"
    assert found.request_counts is not None and found.request_counts.completed > 0
    default.batches.cancel(long.id)
    assert ended(default, long).status == "cancelled"
    asked = [request["prompt"] for request in narrow.triton.requests]
    assert len(set(asked)) == len(asked)


def millrace(mesh: Mesh, folder: Path, *arguments: str) -> str:
    """What the real program prints."""
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": f"{mesh.url}/v1",
        "OPENAI_API_KEY": mesh.member_secret,
        "MILLRACE_HOME": str(folder / "home"),
        "COLUMNS": "200",
    }
    command = [sys.executable, "-c", MILLRACE, "batches", *arguments]
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_batch_from_the_command_line(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl([line(1), line(2, temperature=9), line(3)]))
    given = ("in.jsonl", "--endpoint", CHAT, "--metadata", "name=nightly", "--watch", "--json")
    printed = millrace(mesh, tmp_path, "create", *given)
    made = json.loads(printed[printed.index("\n{") :])
    assert (made["status"], made["metadata"]) == ("completed", {"name": "nightly"})
    assert f"2 answered, 1 not; see: millrace batches results {made['id']}" in printed
    assert "lines 3/3 (100%)" in millrace(mesh, tmp_path, "list")
    assert millrace(mesh, tmp_path, "results", made["id"], "-o", "out.jsonl").count("\n") == 2
    answers = [json.loads(one) for one in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["custom_id"] for one in answers] == ["line-1", "line-3"]
    (mistake,) = (tmp_path / "out.errors.jsonl").read_text().splitlines()
    assert json.loads(mistake)["custom_id"] == "line-2"
