"""``millrace recall``: what is asked, and how what learnt from a row is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_gateway import FakeGateway, page
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
HASH = "sha256:" + "a" * 64
RECALL: dict[str, Any] = {
    "id": "recall-1",
    "object": "recall",
    "created_at": 1_700_000_000,
    "action": "quarantine",
    "status": "standing",
    "reason": "asked",
    "lifted_at": None,
    "lift_reason": None,
    "causes": [
        {
            "id": "dataset-1",
            "kind": "dataset",
            "held_out": False,
            "row_count": 1,
            "joined_at": None,
        },
        {
            "id": "dataset-2",
            "kind": "dataset",
            "held_out": True,
            "row_count": 2,
            "joined_at": 1_700_000_100,
        },
    ],
    "unindexed": ["file-9"],
    "versions": [
        {
            "id": "demo@2",
            "status": "quarantined",
            "live": False,
            "was_live": True,
            "outcome": "quarantined",
            "successor": 1,
        },
        {
            "id": "other@1",
            "status": "serving",
            "live": True,
            "was_live": True,
            "outcome": "no_successor",
            "successor": None,
        },
    ],
    "nodes": [
        {"id": "datasets/dataset-1", "kind": "dataset", "digest": HASH},
        {"id": "runs/run-1", "kind": "run", "digest": None},
    ],
    "edges": [{"cause": "datasets/dataset-1", "effect": "runs/run-1"}],
}


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def millrace(gateway: FakeGateway, tmp_path: Path) -> Any:
    connection = Connection(ENVIRON, Home(tmp_path), gateway.transport)

    def run(*arguments: str) -> Result:
        runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
        return runner.invoke(app, arguments, obj=connection)

    return run


def test_rows_are_sent_as_they_were_uploaded(
    millrace: Any, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.answer("POST /v1/recalls", RECALL)
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"a": 1}\n\n"a text"\n')
    arguments = ["--row", '{"text": "x"}', "--row", "plain", "--file", str(lines)]
    arguments += ["--hash", HASH, "--uploaded", "file-1", "--action", "roll-back"]
    result = millrace("recall", *arguments, "--reason", "asked")
    assert result.exit_code == 0, result.output
    assert gateway.body() == {
        "rows": [{"text": "x"}, "plain", {"a": 1}, "a text"],
        "hashes": [HASH],
        "file": "file-1",
        "action": "roll_back",
        "reason": "asked",
    }


def test_what_learnt_from_it_is_a_tree(millrace: Any, gateway: FakeGateway) -> None:
    gateway.answer("GET /v1/recalls/recall-1", RECALL)
    output = millrace("recalls", "show", "recall-1").output
    assert "dataset dataset-1  1 row\n" in output
    late = "2 rows  held out: judged by it, not learnt  found after the recall was made"
    assert late in output
    assert "demo@2  quarantined  was live  taken out of service  version 1 serves" in output
    assert "other@1  serving  LIVE  serves on: no version before it is clean" in output
    assert output.index("by way of") < output.index("run runs/run-1")
    assert "file-9: nobody can say" in output
    gateway.answer("GET /v1/recalls/recall-1", {**RECALL, "causes": [], "versions": []})
    assert "nothing that a model learns from" in millrace("recalls", "show", "recall-1").output


def test_recalls_are_listed(millrace: Any, gateway: FakeGateway) -> None:
    gateway.answer("GET /v1/recalls", page(RECALL))
    assert "recall-1" in millrace("recalls", "list").output
    assert json.loads(millrace("recalls", "list", "--json").output) == [RECALL]


def test_a_recall_is_lifted(millrace: Any, gateway: FakeGateway) -> None:
    lifted = {**RECALL, "status": "lifted", "lifted_at": 1_700_000_200, "lift_reason": "agreed"}
    gateway.answer("POST /v1/recalls/recall-1/lift", lifted)
    output = millrace("recalls", "lift", "recall-1", "--reason", "agreed").output
    assert gateway.body() == {"reason": "agreed"}
    assert "lifted: keeps nothing out of service any more: agreed" in output


def test_hashes_alone(millrace: Any, gateway: FakeGateway) -> None:
    gateway.answer("POST /v1/row_hashes", {"object": "row_hashes", "hashes": [HASH]})
    assert millrace("recall", "--row", "x", "--only-hash").output == f"{HASH}\n"
    assert gateway.body() == {"rows": ["x"]}


def test_mistakes_are_said(millrace: Any, tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"a": 1}\n{"a":')
    assert millrace("recall").exit_code == 2
    assert millrace("recall", "--row", "x", "--action", "delete").exit_code == 2
    result = millrace("recall", "--file", str(broken))
    assert (result.exit_code, "line 2" in result.output) == (2, True)
