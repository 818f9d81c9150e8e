"""``millrace compressions`` over a gateway without a network."""

import json
from pathlib import Path

import httpx
import pytest
from fake_gateway import FakeGateway
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
PATH = "/v1/compressions"
CHECKPOINT = "runs/run-1/checkpoints/ckpt-1"
CALIBRATION = {
    "source": "own",
    "seed": 3,
    "windows": 64,
    "window_tokens": 512,
    "digest": "sha256:" + "a" * 64,
    "note": None,
    "other": {"source": "generic", "artifact_perplexity": 21.5},
}
COMPRESSION = {
    "id": "compression-1",
    "model": "demo",
    "checkpoint_step": 7,
    "checkpoint_final": True,
    "target": "openvino_int8",
    "status": "succeeded",
    "verdict": {"passed": True, "reasons": []},
    "created_at": 1_700_000_000,
    "measurements": {"artifact_size_bytes": 5_800_000, "calibration": CALIBRATION},
}
ROWS = [
    {"name": "perplexity", "unit": "", "original": 20.0, "artifact": 20.2},
    {"name": "size", "unit": "bytes", "original": 23_200_000, "artifact": 5_800_000},
    {"name": "top-1 agreement", "unit": "share", "original": None, "artifact": 0.981},
    {"name": "load time", "unit": "seconds", "original": None, "artifact": None},
]
REPORT = {"compression": COMPRESSION, "rows": ROWS, "others": [{**COMPRESSION, "id": "other-2"}]}


TRIAL = {
    "target": "openvino_int8",
    "recipe": {},
    "layers_in_8_bits": 0,
    "evaluated_tokens": 1020,
    "size_bytes": 5_800_000,
    "perplexity_increase": 0.0001,
    "top1_agreement": 0.98,
    "latency_seconds": 0.003,
    "broken": ["size"],
    "error": None,
    "chosen": False,
}
RECIPE = {"group_size": 64, "weight_method": "awq"}
FOUND = {**TRIAL, "target": "openvino_int4", "recipe": RECIPE, "layers_in_8_bits": 3}
SEARCH = {
    "hardware": "CPU with avx2",
    "trials": [
        TRIAL,
        {**TRIAL, "target": "x", "error": "GROUP_SIZE_INVALID: no"},
        {**FOUND, "broken": [], "size_bytes": 3_500_000, "chosen": True},
    ],
    "reason": "it is the smallest",
    "unmet": [],
}


@pytest.fixture
def gateway() -> FakeGateway:
    found = FakeGateway()
    found.answer(f"GET {PATH}/compression-1", COMPRESSION)
    found.answer(f"GET {PATH}/compression-1/report", REPORT)
    found.answer(f"POST {PATH}", {**COMPRESSION, "status": "queued"})
    svg = httpx.Response(200, content=b"<svg/>", headers={"content-type": "image/svg+xml"})
    return found.answer(f"GET {PATH}/compression-1/report.svg", svg)


def run(gateway: FakeGateway, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(Path("unused")), gateway.transport)
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, ("compressions", *arguments), obj=connection)


def test_show_has_the_original_beside_the_artifact(gateway: FakeGateway) -> None:
    result = run(gateway, "show", "compression-1")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["perplexity", "20", "20.2", "+1.0%"] in lines
    assert ["size", "23.2", "MB", "5.8", "MB", "-75.0%"] in lines
    assert ["top-1", "agreement", "-", "98.10%", "-"] in lines
    assert "load time" not in result.output, "what nobody measured is not shown"
    assert "64 windows of 512 tokens, own data, seed 3" in result.output
    assert "with generic data perplexity is 21.5" in result.output
    assert json.loads(run(gateway, "show", "compression-1", "--json").output) == COMPRESSION


def test_show_tells_what_a_search_has_tried(gateway: FakeGateway) -> None:
    measured = {**COMPRESSION["measurements"], "search": SEARCH}  # type: ignore[dict-item]
    chosen = {"target": "openvino_int4", "recipe": RECIPE, "layers_in_8_bits": 3}
    found = {**COMPRESSION, "target": "auto", "chosen": chosen, "measurements": measured}
    gateway.answer(f"GET {PATH}/compression-1/report", {**REPORT, "compression": found})
    output = run(gateway, "show", "compression-1").output
    assert "openvino_int4 g64 awq 3 layers in 8 bits" in output
    for said in ("breaks size", "passes, chosen", "GROUP_SIZE_INVALID: no", "+0.01%", "3.5 MB"):
        assert said in output
    assert "it is the smallest; CPU with avx2" in output
    judged = {**SEARCH, "trials": [{**TRIAL, "task_score": 0.4375}, {**TRIAL, "task_score": None}]}
    found["measurements"] = {**measured, "search": judged}
    gateway.answer(f"GET {PATH}/compression-1/report", {**REPORT, "compression": found})
    assert "43.75%" in run(gateway, "show", "compression-1").output


def test_a_report_names_the_others_and_writes_the_plot(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.svg"
    result = run(gateway, "report", "compression-1", "--output", str(plot), "--of", "model")
    assert result.exit_code == 0, result.output
    assert plot.read_bytes() == b"<svg/>"
    assert {request.url.params["of"] for request in gateway.requests} == {"model"}
    assert "other-2" in result.output
    found = json.loads(run(gateway, "report", "compression-1", "--json").output)
    assert found == REPORT


def test_what_is_given_is_sent_and_nothing_else(gateway: FakeGateway) -> None:
    assert run(gateway, "create", CHECKPOINT, "--target", "onnx_int8").exit_code == 0
    assert gateway.body() == {"checkpoint": CHECKPOINT, "target": "onnx_int8"}
    arguments = (
        "--max-perplexity-increase",
        "0.02",
        "--max-size-bytes",
        "9000000",
        "--group-size",
        "32",
        "--kv-cache-int8",
    )
    given = ("--weight-method", "awq", "--calibration", "generic", "--calibration-seed", "5")
    pruned = ("--prune-depth", "0.25", "--no-recovery", "--compare-calibration")
    result = run(gateway, "create", CHECKPOINT, "--target", "x", *arguments, *given, *pruned)
    assert result.exit_code == 0, result.output
    assert gateway.body() == {
        "checkpoint": CHECKPOINT,
        "target": "x",
        "gate": {"max_perplexity_increase": 0.02, "max_size_bytes": 9_000_000},
        "recipe": {
            "group_size": 32,
            "weight_method": "awq",
            "kv_cache_int8": True,
            "calibration": {"source": "generic", "seed": 5, "compare": True},
            "pruning": {"depth": 0.25, "recovery": False},
        },
    }


def test_a_task_is_sent_and_what_was_asked_is_told(gateway: FakeGateway) -> None:
    given = ("--task", '{"file": "file-1", "metric": "contains"}', "--min-task-score", "0.5")
    assert run(gateway, "create", CHECKPOINT, "--target", "x", *given).exit_code == 0
    assert gateway.body()["task"] == {"file": "file-1", "metric": "contains"}
    assert gateway.body()["gate"] == {"min_task_score": 0.5}
    asked = {"file": "file-1", "rows": 64, "max_answer_tokens": 32, "seed": 0, "skipped_rows": 2}
    measured = {"task": {**asked, "digest": "sha256:" + "b" * 64}}
    row = {"name": "contains of 64 answers", "unit": "share", "original": 0.5, "artifact": 0.25}
    report = {"compression": {**COMPRESSION, "measurements": measured}, "rows": [row]}
    gateway.answer(f"GET {PATH}/compression-1/report", {**report, "others": []})
    shown = " ".join(run(gateway, "show", "compression-1").output.split())
    assert "50.00%" in shown and "-50.0%" in shown
    assert "asked 64 rows of file-1" in shown and "2 left out" in shown


def test_a_compression_is_cancelled(gateway: FakeGateway) -> None:
    gateway.answer(f"POST {PATH}/compression-1/cancel", {**COMPRESSION, "status": "cancelled"})
    assert "cancelled" in run(gateway, "cancel", "compression-1").output
