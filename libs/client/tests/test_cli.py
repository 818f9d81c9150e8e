"""The command line over a gateway without a network."""

import json
from pathlib import Path

import httpx
import pytest
from fake_gateway import FakeGateway, error, page, stream
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.errors import ApiError
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
RUN = {
    "id": "run-1",
    "object": "training.run",
    "model": "demo",
    "status": "running",
    "progress": {"phase": "train", "completed": 30, "total": 120, "metrics": {"loss": 3.25}},
    "parameter_count": 5_771_264,
    "created_at": 1_700_000_000,
    "error": None,
}
CHECKPOINT = {
    "id": "ckpt-1",
    "step": 60,
    "final": False,
    "tokens_seen": 10,
    "train_loss": 3.0,
    "heldout_loss": 3.1,
    "size_bytes": 12_000_000,
    "created_at": 1_700_000_000,
}
ROLLOUT = {
    "id": "rollout-1",
    "model": "demo",
    "from_version": 1,
    "to_version": 2,
    "status": "canary",
    "traffic_share": 0.25,
    "requests": 7,
    "failures": 0,
    "reason": "step 1 of 1 [25 %]",
    "created_at": 1_700_000_000,
}


class CommandLine:
    """``millrace`` with a fake gateway and a home of its own."""

    def __init__(self, home: Path) -> None:
        self.gateway = FakeGateway()
        self.home = Home(home)
        self._connection = Connection(ENVIRON, self.home, self.gateway.transport)

    def __call__(self, *arguments: str, given: str | None = None) -> Result:
        runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
        return runner.invoke(app, arguments, obj=self._connection, input=given)

    def json(self, *arguments: str) -> object:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def millrace(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def test_help_shows_where_to_start(millrace: CommandLine):
    output = millrace("--help").output
    for expected in ("millrace up --detach", "eval", "MILLRACE_HOME", "OPENAI_API_KEY", "doctor"):
        assert expected in output


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (("datasets", "list"), "/v1/datasets"),
        (("files", "list"), "/v1/files"),
        (("runs", "list"), "/v1/training/runs"),
        (("tune", "list"), "/v1/fine_tuning/jobs"),
        (("compressions", "list"), "/v1/compressions"),
        (("rollouts", "list"), "/v1/rollouts"),
        (("deployments", "list"), "/v1/deployments"),
        (("keys", "list"), "/v1/keys"),
        (("batches", "list"), "/v1/batches"),
        (("webhooks", "list"), "/v1/webhook_endpoints"),
        (("dead-letters", "list"), "/v1/dead_letters"),
        (("models",), "/v1/models"),
        (("versions",), "/v1/versions"),
    ],
)
def test_every_list_is_json_for_programs_and_a_sentence_when_empty(
    millrace: CommandLine, command: tuple[str, ...], path: str
):
    millrace.gateway.answer(f"GET {path}", page())
    assert millrace.json(*command) == []
    assert " no" in f" {millrace(*command).output}"


def test_runs_as_a_table(millrace: CommandLine):
    millrace.gateway.answer("GET /v1/training/runs", page(RUN))
    output = millrace("runs", "list").output
    for expected in ("run-1", "running", "train 30/120 (25%)", "3.25", "5,771,264"):
        assert expected in output


def test_a_run_is_created_with_what_was_given_alone(millrace: CommandLine):
    millrace.gateway.answer("POST /v1/training/runs", RUN)
    arguments = ("--dataset", "dataset-1", "--model", "demo", "--steps", "9", "--request-id", "r")
    assert millrace("runs", "create", *arguments).exit_code == 0
    assert millrace.gateway.body() == {
        "model": "demo",
        "dataset": "dataset-1",
        "hyperparameters": {"total_steps": 9},
        "architecture": {},
    }
    assert millrace.gateway.requests[-1].headers["idempotency-key"] == "r"


def test_a_watched_run_shows_its_checkpoints_and_ends(millrace: CommandLine):
    millrace.gateway.answer(
        "GET /v1/training/runs/run-1", RUN, {**RUN, "status": "succeeded"}
    ).answer("GET /v1/training/runs/run-1/checkpoints", page(CHECKPOINT))
    result = millrace("runs", "watch", "run-1")
    assert result.exit_code == 0
    assert result.output.count("checkpoint at step 60: loss 3, held-out 3.1, 12.0 MB") == 1
    assert "train 30/120  loss 3.25" in result.output


def test_watching_a_run_that_fails_exits_with_1(millrace: CommandLine):
    failed = {**RUN, "status": "failed", "error": {"code": "diverged", "message": "loss is [nan]"}}
    millrace.gateway.answer("GET /v1/training/runs/run-1", failed).answer(
        "GET /v1/training/runs/run-1/checkpoints", page()
    )
    result = millrace("runs", "watch", "run-1")
    assert result.exit_code == 1
    assert "diverged: loss is [nan]" in result.output


def test_watching_outlives_a_gateway_that_is_away(millrace: CommandLine):
    millrace.gateway.answer(
        "GET /v1/rollouts/rollout-1",
        ROLLOUT,
        error(503, "restarting"),
        {**ROLLOUT, "status": "settled"},
    )
    result = millrace("rollouts", "watch", "rollout-1")
    assert result.exit_code == 0
    assert "demo@2  share 25%  requests 7  failed 0  step 1 of 1 [25 %]" in result.output


def test_a_dataset_needs_a_source(millrace: CommandLine):
    result = millrace("datasets", "create")
    assert "--python-stdlib" in str(result.exception)
    assert millrace.gateway.requests == []


def test_a_dataset_of_files_uploads_them_first(millrace: CommandLine, tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_text("words")
    millrace.gateway.answer("POST /v1/files", {"id": "file-1"}).answer(
        "POST /v1/datasets", {"id": "dataset-1", "status": "queued"}
    )
    assert millrace("datasets", "create", str(text), "--name", "books").exit_code == 0
    assert b"words" in millrace.gateway.requests[0].content
    assert millrace.gateway.body() == {
        "source": {"type": "files", "files": ["file-1"]},
        "display_name": "books",
        "recipe": {},
    }


def test_a_dataset_of_examples_has_no_recipe(millrace: CommandLine, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}")
    millrace.gateway.answer("POST /v1/files", {"id": "file-1"}).answer(
        "POST /v1/datasets", {"id": "dataset-1", "status": "queued"}
    )
    assert millrace("datasets", "create", str(pairs), "--examples").exit_code == 0
    assert b"fine-tune" in millrace.gateway.requests[0].content
    assert millrace.gateway.body() == {
        "source": {"type": "examples", "files": ["file-1"]},
        "display_name": "",
    }
    millrace.gateway.answer("POST /v1/fine_tuning/jobs", {"id": "ftjob-1", "status": "queued"})
    assert millrace("tune", "create", "-M", "demo", "-f", "dataset-1").exit_code == 0
    assert millrace.gateway.body()["training_file"] == "dataset-1"


def test_tuning_uploads_a_path_and_takes_an_id_as_it_is(millrace: CommandLine, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}")
    job = {"id": "ftjob-1", "status": "queued"}
    millrace.gateway.answer("POST /v1/files", {"id": "file-9"}).answer(
        "POST /v1/fine_tuning/jobs", job
    )
    assert millrace("tune", "create", "-M", "demo", "-f", str(pairs)).exit_code == 0
    assert millrace.gateway.body()["training_file"] == "file-9"
    assert millrace("tune", "create", "-M", "demo", "-f", "file-3", "--rank", "4").exit_code == 0
    assert millrace.gateway.body()["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": {}, "adapter": {"rank": 4}},
    }


def test_a_file_that_is_not_there_is_said_so(millrace: CommandLine):
    result = millrace("tune", "create", "-M", "demo", "-f", "nowhere.jsonl")
    assert result.exit_code == 2
    assert "neither a file here nor the id of an upload" in result.output


def test_one_question(millrace: CommandLine):
    chunk = '{"choices": [{"delta": {"content": "%s"}}]}'
    millrace.gateway.answer("GET /v1/models", page({"id": "demo", "created": 1})).answer(
        "POST /v1/chat/completions",
        stream(f"data: {chunk % 'Hel'}", f"data: {chunk % 'lo'}", "data: [DONE]"),
    )
    result = millrace("chat", "-m", "hi", "--system", "be kind", "--seed", "3")
    assert result.stdout == "Hello\n"
    body = millrace.gateway.body()
    assert (body["model"], body["seed"]) == ("demo", 3)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]


def test_a_conversation_remembers_until_it_is_told_to_forget(millrace: CommandLine):
    millrace.gateway.answer(
        "POST /v1/chat/completions",
        lambda _: stream('data: {"choices": [{"delta": {"content": "yes"}}]}', "data: [DONE]"),
    )
    assert millrace("chat", "demo", given="one\ntwo\n/new\nthree\n").exit_code == 0
    sent = [
        [m["content"] for m in millrace.gateway.body(i)["messages"]]
        for i in range(len(millrace.gateway.requests))
    ]
    assert sent == [["one"], ["one", "yes", "two"], ["three"]]


def test_a_completion(millrace: CommandLine):
    millrace.gateway.answer(
        "POST /v1/completions", stream('data: {"choices": [{"text": "x"}]}', "data: [DONE]")
    )
    assert millrace("complete", "import os", "--model", "demo").stdout == "x\n"
    assert millrace.gateway.body()["prompt"] == "import os"


def test_with_nothing_served_chat_says_so(millrace: CommandLine):
    millrace.gateway.answer("GET /v1/models", page())
    assert "nothing is served yet" in str(millrace("chat", "-m", "hi").exception)


EVENT = {
    "id": "fact-1",
    "subject": "millrace.default.registry.rollout.settled",
    "time": "2026-11-20T22:00:00.123456Z",
    "data": {
        "rollout": "tenants/default/rollouts/rollout-1",
        "model": "demo",
        "to_version": "2",
        "checkpoint_to_settled_seconds": 21.5,
    },
}


def test_events_on_one_line_each(millrace: CommandLine):
    millrace.gateway.answer("GET /v1/events", stream(f"data: {json.dumps(EVENT)}"))
    output = millrace("events", "--filter", "registry", "--filter", "rollout.settled").output
    assert "registry" in output
    assert "rollout-1  model=demo  to_version=2  checkpoint_to_settled_seconds=21.5" in output
    parameters = dict(millrace.gateway.requests[0].url.params)
    assert parameters == {"stage": "registry", "fact": "rollout.settled", "follow": "false"}


def test_events_as_json_lines(millrace: CommandLine):
    millrace.gateway.answer("GET /v1/events", stream(f"data: {json.dumps(EVENT)}"))
    assert json.loads(millrace("events", "--json").stdout) == EVENT


def test_a_models_card_is_printed_as_it_is(millrace: CommandLine):
    card = "---\nlicense: mit\n---\n# [bold]ft:demo[/bold]\n"
    millrace.gateway.answer("GET /v1/models/ft:demo/card", httpx.Response(200, text=card))
    assert millrace("models", "card", "ft:demo").output == card


def test_versions_show_before_and_after(millrace: CommandLine):
    version = {
        "id": "demo@2",
        "status": "serving",
        "target": "openvino_int8",
        "checkpoint_step": 120,
        "checkpoint_final": True,
        "created_at": 1,
        "measurements": {
            "original_size_bytes": 23_000_000,
            "artifact_size_bytes": 6_100_000,
            "original_perplexity": 20.5,
            "artifact_perplexity": 20.6,
            "first_token_seconds": 0.004,
            "token_seconds": None,
        },
    }
    millrace.gateway.answer("GET /v1/versions", page(version))
    output = millrace("versions", "--model", "demo").output
    for expected in ("120 final", "23.0 MB → 6.1 MB", "20.500 → 20.600", "4 ms"):
        assert expected in output


def test_lineage_as_a_tree(millrace: CommandLine):
    document = {
        "id": "demo@1",
        "object": "lineage",
        "nodes": [
            {"id": "datasets/d", "kind": "dataset", "digest": "sha256:" + "0" * 64},
            {"id": "runs/r", "kind": "run", "digest": None},
        ],
        "edges": [{"cause": "datasets/d", "effect": "runs/r"}],
    }
    millrace.gateway.answer("GET /v1/lineage/demo@1", document)
    lines = millrace("lineage", "demo@1").output.splitlines()
    assert lines[1].endswith("dataset datasets/d  sha256:000000000000")
    assert lines[2].endswith("└── run runs/r")


def test_a_secret_is_on_a_line_of_its_own(millrace: CommandLine):
    key = {"id": "key-1", "tenant": "acme", "role": "member", "secret": "sk-mr-new"}
    millrace.gateway.answer("POST /v1/keys", key)
    result = millrace("keys", "create", "--tenant", "acme")
    assert "sk-mr-new" in result.stdout.splitlines()
    assert millrace.gateway.body() == {"display_name": "", "role": "member", "tenant": "acme"}


def test_a_keys_limits_are_given_and_taken_away(millrace: CommandLine):
    key = {"id": "key-1", "tenant": "acme", "role": "member", "secret": "sk-mr-new"}
    millrace.gateway.answer("POST /v1/keys", key)
    millrace("keys", "create", "--requests-per-minute", "60", "--concurrent", "2")
    assert millrace.gateway.body() == {
        "display_name": "",
        "role": "member",
        "requests_per_minute": 60,
        "concurrent_generations": 2,
    }
    millrace.gateway.answer("PATCH /v1/keys/key-1", key)
    arguments = ("--tenant", "acme", "--tokens-per-minute", "0", "--priority", "low")
    assert millrace("keys", "update", "key-1", *arguments).exit_code == 0
    assert millrace.gateway.body() == {"tokens_per_minute": None, "priority": "low"}


def test_a_deployment_is_updated_by_what_is_given(millrace: CommandLine):
    millrace.gateway.answer("PATCH /v1/deployments/deployment-1", {"id": "deployment-1"})
    arguments = ("--tracking", "final", "--step", "0.1", "--step", "0.5")
    assert millrace("deployments", "update", "deployment-1", *arguments).exit_code == 0
    assert millrace.gateway.body() == {
        "tracking": "final",
        "strategy": {"type": "canary", "steps": [0.1, 0.5]},
    }


def test_a_deployment_says_how_its_versions_are_compared(millrace: CommandLine):
    millrace.gateway.answer("POST /v1/deployments", {"id": "deployment-1"})
    arguments = ("--analysis", '{"maximum_latency_increase": 0.5}')
    assert millrace("deployments", "create", "demo", *arguments).exit_code == 0
    assert millrace.gateway.body() == {
        "model": "demo",
        "analysis": {"maximum_latency_increase": 0.5},
    }
    assert millrace("deployments", "create", "demo", "--analysis", "x").exit_code == 2


def test_a_deployment_names_a_task_and_takes_it_away(millrace: CommandLine):
    millrace.gateway.answer("PATCH /v1/deployments/deployment-1", {"id": "deployment-1"})
    task = {"file": "file-1", "metric": "exact_match"}
    arguments = ("--task", json.dumps(task), "--max-task-score-decrease", "0.02")
    assert millrace("deployments", "update", "deployment-1", *arguments).exit_code == 0
    assert millrace.gateway.body() == {"task": task, "gate": {"max_task_score_decrease": 0.02}}
    assert millrace("deployments", "update", "deployment-1", "--task", "none").exit_code == 0
    assert millrace.gateway.body() == {"task": None}
    assert millrace("deployments", "update", "deployment-1", "--task", "x").exit_code == 2


def test_a_deployment_says_how_its_model_is_run(millrace: CommandLine):
    millrace.gateway.answer("POST /v1/deployments", {"id": "deployment-1"})
    arguments = ("--instance-count", "2", "--max-batch-size", "32", "--max-queue-size", "8")
    assert millrace("deployments", "create", "demo", *arguments).exit_code == 0
    assert millrace.gateway.body() == {
        "model": "demo",
        "serving": {
            "instance_count": 2,
            "max_batch_size": 32,
            "queue_policy": {"max_queue_size": 8},
        },
    }


def test_an_error_is_the_gateways_own(millrace: CommandLine):
    millrace.gateway.answer(
        "POST /v1/training/runs", error(400, "there is no such dataset", param="dataset")
    )
    result = millrace("runs", "create", "--dataset", "x", "--model", "demo")
    assert isinstance(result.exception, ApiError)
    assert result.exception.param == "dataset"


def test_env_is_two_lines_to_evaluate(millrace: CommandLine):
    millrace.home.state_file.write_text(json.dumps({"gateway_url": "http://127.0.0.1:8080"}))
    millrace.home.operator_key_file.parent.mkdir()
    millrace.home.operator_key_file.write_text("sk-mr-x\n")
    assert millrace("env").stdout.splitlines() == [
        "export OPENAI_BASE_URL=http://127.0.0.1:8080/v1",
        "export OPENAI_API_KEY=sk-mr-x",
    ]


def test_status_of_no_mesh(millrace: CommandLine):
    result = millrace("status", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["phase"] == "stopped"
    assert "millrace up --detach" in millrace("status").output


def test_down_without_a_mesh_is_no_error(millrace: CommandLine):
    result = millrace("down")
    assert result.exit_code == 0
    assert "no mesh runs" in result.output


def test_restart_needs_a_mesh_and_known_services(millrace: CommandLine):
    assert "no mesh is ready" in str(millrace("restart").exception)
    assert "'nats' cannot be restarted" in str(millrace("restart", "nats").exception)


def test_logs_show_the_end(millrace: CommandLine):
    millrace.home.logs.mkdir()
    (millrace.home.logs / "trainer.log").write_text("one\ntwo\nthree\n")
    assert millrace("logs", "trainer", "-n", "2").stdout == "two\nthree\n"
    assert "there are: trainer" in str(millrace("logs", "nobody").exception)


def test_a_trace_as_a_tree(millrace: CommandLine):
    from test_traces import TRACE, span, store

    millrace.home.traces.mkdir()
    polls = [span(str(i), "root", name="poll", end=i / 10) for i in range(1, 6)]
    child = span("job", "root", service="millrace-trainer", start=1, end=4, links=["b" * 32])
    store(millrace.home.traces, [span("root", end=5), *polls, child])
    output = millrace("trace", TRACE[:8]).output
    assert f"trace {TRACE}  5.0 s, 7 spans, 2 services" in output
    assert "gateway poll  +0 µs  500 ms  (longest of 5, median 300 ms)" in output
    assert f"trainer job  +1.0 s  3.0 s  ↪ {'b' * 32}" in output
    assert output.count("poll") == 1
    assert millrace("trace", TRACE, "--all").output.count("poll") == 5
    listed = millrace("trace").output
    assert TRACE in listed
    assert "gateway trainer" in listed


def test_a_trace_that_is_not_there(millrace: CommandLine):
    millrace.home.traces.mkdir()
    assert "0 traces" in str(millrace("trace", "f" * 32).exception)
