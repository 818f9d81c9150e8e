"""``millrace tune`` over a gateway without a network."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from fake_gateway import FakeGateway, error, page, stream
from hypothesis import given
from hypothesis import strategies as st
from test_tuning_parts import CHECKPOINT, TUNED, event, job
from typer.testing import CliRunner, Result

from millrace_client import output, tuning_feed, tuning_watch
from millrace_client.cli import app
from millrace_client.commands import tune_options
from millrace_client.connection import Connection
from millrace_client.errors import BadRequest, NotFound
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
PATH = "/v1/fine_tuning/jobs"
ONE = f"{PATH}/ftjob-1"
DONE = job("succeeded", "rollout", 1, fine_tuned_model=TUNED, finished_at=1_700_000_090)
ROWS = b"".join(
    json.dumps({"prompt": word, "completion": word.upper()}).encode() + b"\n" for word in "abcd"
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_feed, "_RETRY_SECONDS", 0.0)


@pytest.fixture
def gateway() -> FakeGateway:
    found = FakeGateway()
    found.answer(f"POST {PATH}", job("queued", "", progress=None))
    found.answer(f"GET {ONE}/checkpoints", page(CHECKPOINT))
    found.answer("GET /v1/files/file-1/content", lambda _: httpx.Response(200, content=ROWS))
    found.answer("POST /v1/chat/completions", echo)
    return found


def echo(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    said = f"{body['model']} on {body['messages'][-1]['content']}"
    return httpx.Response(200, json={"choices": [{"message": {"content": said}}]})


def told(*updates: Any, ended: bool = True) -> httpx.Response:
    """The gateway's stream of a job."""
    pieces = [
        f"event: {one['object']}\nid: {one['id']}\ndata: {json.dumps(one)}" for one in updates
    ]
    return stream(": heartbeat", *pieces, *(["data: [DONE]"] if ended else []))


def run(gateway: FakeGateway, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(Path("unused")), gateway.transport)
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, ("tune", *arguments), obj=connection)


def method(gateway: FakeGateway, *arguments: str) -> Any:
    """The method that is asked for."""
    result = run(gateway, "create", "-M", "demo", "-f", "file-1", *arguments)
    assert result.exit_code == 0, result.output
    return gateway.body()["method"]


@pytest.mark.parametrize(
    ("space", "asked"),
    [
        (None, {"trials": 8}),
        ({"beta": {"low": 0.1, "high": 1}}, {"parameters": {"beta": {"low": 0.1, "high": 1}}}),
        ({"metric": "valid_loss", "patience": 2}, {"metric": "valid_loss", "patience": 2}),
    ],
)
def test_a_sweep_is_asked_for(gateway: FakeGateway, tmp_path: Path, space: Any, asked: Any) -> None:
    file = tmp_path / "space.json"
    file.write_text(json.dumps(space))
    more = () if space is None else ("--sweep-space", str(file))
    method(gateway, "--sweep", "8", *more)
    assert gateway.body()["sweep"] == {"trials": 8, **asked}


def test_a_sweeps_space_needs_its_trials(gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "space.json"
    file.write_text('{"trials": 4}')
    space = ("--sweep-space", str(file))
    for more, said in ((space, "needs --sweep N"), (("--sweep", "4", *space), "as --sweep N")):
        result = run(gateway, "create", "-M", "demo", "-f", "file-1", *more)
        assert result.exit_code == 2
        assert said in result.output


def test_a_bare_job_leaves_everything_to_the_service(gateway: FakeGateway) -> None:
    assert method(gateway) == {"type": "supervised", "supervised": {"hyperparameters": {}}}
    assert gateway.body() == {
        "model": "demo",
        "training_file": "file-1",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
    }


def test_every_option_has_its_place(gateway: FakeGateway, tmp_path: Path) -> None:
    common = "--epochs 2 --batch 4 --learning-rate-multiplier 0.5 --max-tokens 64"
    more = "--early-stopping 3 --no-packing --adapter dora --rank 8 --alpha 16 --dropout 0.1"
    modules = "--target-modules q_proj --target-modules v_proj --full-modules lm_head"
    options = f"{common} {more} {modules} --quantize-base --seed 0 --suffix docs"
    assert method(gateway, *options.split(), "--request-id", "r") == {
        "type": "supervised",
        "supervised": {
            "hyperparameters": {
                "n_epochs": 2,
                "batch_size": 4,
                "learning_rate_multiplier": 0.5,
                "maximum_sequence_tokens": 64,
                "early_stopping_patience": 3,
            },
            "packing": False,
            "adapter": {
                "kind": "dora",
                "rank": 8,
                "alpha": 16.0,
                "dropout": 0.1,
                "target_modules": ["q_proj", "v_proj"],
                "full_modules": ["lm_head"],
                "quantized_base": True,
            },
        },
    }
    assert (gateway.body()["seed"], gateway.body()["suffix"]) == (0, "docs")
    assert gateway.requests[-1].headers["idempotency-key"] == "r"


def test_each_method_has_its_own(gateway: FakeGateway, tmp_path: Path) -> None:
    grader = tmp_path / "grader.json"
    grader.write_text('{"type": "string_check"}')
    for options, own in (
        ("dpo --beta 0.2 --loss ipo", {"hyperparameters": {"beta": 0.2}, "loss": "ipo"}),
        ("kto", {}),
        ("orpo --beta 0.3", {"hyperparameters": {"beta": 0.3}}),
        ("reward", {}),
        (
            f"reinforcement --grader {grader} --algorithm rloo",
            {"grader": {"type": "string_check"}, "algorithm": "rloo"},
        ),
        ("ppo --reward-model ftjob-2", {"reward_model": "ftjob-2"}),
        ("distillation --teacher large", {"teacher": "large"}),
        ("pretraining --replay 0.1", {"hyperparameters": {"replay_fraction": 0.1}}),
        ("classification --adapter none", {"adapter": {"kind": "none"}}),
        (
            "sequence --adapter prefix --virtual-tokens 8",
            {"adapter": {"kind": "prefix", "virtual_tokens": 8}},
        ),
    ):
        kind = options.split()[0]
        expected = {"type": kind, kind: {"hyperparameters": {}, **own}}
        assert method(gateway, "--method", *options.split()) == expected


def test_a_methods_file_is_the_whole_method(gateway: FakeGateway, tmp_path: Path) -> None:
    whole = tmp_path / "method.json"
    whole.write_text('{"type": "dpo", "dpo": {"x": 1}}')
    assert method(gateway, "--method-file", str(whole)) == {"type": "dpo", "dpo": {"x": 1}}
    for more in (("--epochs", "2"), ("--method", "dpo")):
        arguments = ("-M", "demo", "-f", "file-1", "--method-file", str(whole), *more)
        result = run(gateway, "create", *arguments)
        assert result.exit_code == 2
        assert f"without {more[0]}" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--loss ipo", "is for --method dpo"),
        ("--method dpo --teacher large", "is for --method distillation"),
        ("--method dpo --packing", "is for --method supervised"),
        ("--method ppo", "--method ppo needs it"),
        ("--method reinforcement", "--grader"),
        ("--method reinforcement --grader broken.json", "is not JSON"),
        ("--method reinforcement --grader list.json", "is not a JSON object"),
        ("--method alchemy", "distillation"),
        ("--epochs 0", "--epochs"),
        ("--replay 2 --method pretraining", "--replay"),
    ],
)
def test_mistakes_are_said_before_anything_is_sent(
    gateway: FakeGateway,
    arguments: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    result = run(gateway, "create", "-M", "demo", "-f", "file-1", *arguments.split())
    assert result.exit_code == 2
    assert said in result.output
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("param", "option"),
    [
        ("model", "--model"),
        ("method.type", "--method"),
        ("method.dpo.hyperparameters.n_epochs", "--epochs"),
        ("method.supervised.adapter.target_modules[1]", "--target-modules"),
        ("method.reinforcement.grader.input", "--grader"),
        ("method.dpo.loss", "--loss"),
    ],
)
def test_a_refusal_names_the_option(gateway: FakeGateway, param: str, option: str) -> None:
    gateway.answer(f"POST {PATH}", error(400, f"Invalid value for '{param}': no.", param=param))
    refused = run(gateway, "create", "-M", "demo", "-f", "file-1").exception
    assert isinstance(refused, BadRequest)
    assert refused.param == option
    assert str(refused) == f"Invalid value for {option}: no."


def test_what_has_no_option_keeps_its_name(gateway: FakeGateway) -> None:
    gateway.answer(f"POST {PATH}", error(400, "no", param="integrations"))
    refused = run(gateway, "create", "-M", "demo", "-f", "file-1").exception
    assert isinstance(refused, BadRequest)
    assert refused.param == "integrations"


@given(st.text(alphabet="method.supervised_[]0x", max_size=40))
def test_any_field_is_an_option_or_none(param: str) -> None:
    found = tune_options.option_of(param)
    assert found == "" or found.startswith("--")


def test_help_has_its_panels_and_examples(gateway: FakeGateway) -> None:
    text = run(gateway, "create", "--help").output
    for expected in ("Data", "Method", "Hyperparameters", "Adapter", "Output", "--method dpo"):
        assert expected in text
    assert "millrace tune create --model demo" in run(gateway, "--help").output


EVENTS = [
    event(10, 3.5, at=10),
    {**event(40, 1.9, valid_loss=2.01), "message": "Checkpoint created at step 40"},
]


def test_a_job_is_made_watched_and_compared(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}/events", told(*EVENTS, job(done=40), DONE))
    result = run(gateway, "create", "-M", "demo", "-f", "file-1", "--watch")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "Step 10/120: training loss=3.50" in lines[0]
    assert lines[1].endswith("Checkpoint created at step 40  valid_loss=2.01")
    assert lines[2].endswith(f"valid_loss=2.01 model={TUNED}:ckpt-step-40")
    assert lines[3] == "ftjob-1 succeeded after 1 min 30 s"
    assert lines[4] == f"talk to it: millrace chat {TUNED}"
    assert lines[5:9] == [
        'sample 1 prompt: "a"',
        'sample 1 before demo: "demo on a"',
        f'sample 1 after {TUNED}: "{TUNED} on a"',
        'sample 1 wanted: "A"',
    ]
    assert len(lines) == 5 + 3 * 4
    asked = gateway.body()
    assert (asked["temperature"], asked["max_tokens"]) == (0, 96)


def test_samples_are_ones_own_when_one_asks(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}/events", told(DONE))
    result = run(gateway, "watch", "ftjob-1", "--sample", "x", "--sample", "y")
    assert 'sample 2 prompt: "y"' in result.output
    assert "sample 3" not in result.output
    assert "wanted" not in result.output
    assert "sample" not in run(gateway, "watch", "ftjob-1", "--samples", "0").output


def test_as_many_samples_as_one_wants_of_the_newest_job(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}/events", told(DONE)).answer(f"GET {PATH}", page(job()))
    assert 'sample 4 prompt: "d"' in run(gateway, "watch", "--samples", "4").output
    gateway.answer(f"GET {PATH}", page())
    assert "there are no fine-tuning jobs yet" in str(run(gateway, "watch").exception)


def test_a_validation_file_is_asked_before_what_was_learned(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}/events", told({**DONE, "validation_file": "file-2"}))
    gateway.answer("GET /v1/files/file-2/content", httpx.Response(200, content=b'{"prompt":"v"}'))
    assert 'sample 1 prompt: "v"' in run(gateway, "watch", "ftjob-1").output


def test_texts_are_gone_on_from(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}/events", told(DONE))
    rows = b'{"text": "one two three four"}'
    gateway.answer("GET /v1/files/file-1/content", httpx.Response(200, content=rows))
    gateway.answer("POST /v1/completions", {"choices": [{"text": " three"}]})
    assert f'after {TUNED}: " three"' in run(gateway, "watch", "ftjob-1").output
    assert gateway.body()["prompt"] == "one two"


def test_a_model_that_cannot_answer_is_one_line(gateway: FakeGateway) -> None:
    def only_the_tuned(request: httpx.Request) -> httpx.Response:
        is_base = json.loads(request.content)["model"] == "demo"
        return error(404, "no such model") if is_base else echo(request)

    gateway.answer(f"GET {ONE}/events", told(DONE))
    gateway.answer("POST /v1/chat/completions", only_the_tuned)
    result = run(gateway, "watch", "ftjob-1")
    assert result.exit_code == 0
    assert result.output.count("demo cannot answer: no such model") == 1
    assert 'sample 3 before demo: "-"' in result.output
    assert f'sample 3 after {TUNED}: "{TUNED} on c"' in result.output


@pytest.mark.parametrize(
    ("change", "content", "said"),
    [
        (
            {"method": {"type": "reward", "reward": {}}},
            ROWS,
            "a model tuned by the method reward writes no",
        ),
        ({"fine_tuned_model": None}, ROWS, "the job made no model that is served"),
        ({}, b'{"x": 1}', "the job's file asks nothing; see --sample"),
        ({}, b"{", "the job's file cannot be read"),
        ({"training_file": "file-gone"}, ROWS, "the job's file cannot be read"),
    ],
)
def test_without_samples_one_line_says_why(
    gateway: FakeGateway, change: Any, content: bytes, said: str
) -> None:
    gateway.answer(f"GET {ONE}/events", told({**DONE, **change}))
    gateway.answer("GET /v1/files/file-1/content", httpx.Response(200, content=content))
    result = run(gateway, "watch", "ftjob-1")
    assert result.exit_code == 0
    assert f"no samples: {said}" in result.output


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            {"error": {"code": "training_diverged", "message": "loss is [nan]"}},
            "failed: training_diverged: loss is [nan]\n"
            "what to do: lower --learning-rate-multiplier",
        ),
        ({"error": None}, "failed: unknown: nobody said why"),
        (
            {"error": {"code": "crashed", "message": "x"}},
            "what to do: see: millrace tune events ftjob-1",
        ),
        ({"status": "cancelled"}, "was cancelled"),
        ({"status": "paused"}, "millrace tune resume ftjob-1"),
    ],
)
def test_what_did_not_succeed_exits_with_1(gateway: FakeGateway, end: Any, said: str) -> None:
    gateway.answer(f"GET {ONE}/events", told({**job("failed"), **end}))
    result = run(gateway, "watch", "ftjob-1")
    assert result.exit_code == 1
    assert said in result.output


def test_watching_goes_on_where_a_stream_broke_off(gateway: FakeGateway) -> None:
    gateway.answer(
        f"GET {ONE}/events",
        told(EVENTS[0], ended=False),
        error(503, "restarting"),
        error(503, "restarting"),
        told(EVENTS[1], DONE),
    )
    result = run(gateway, "watch", "ftjob-1", "--samples", "0")
    assert result.exit_code == 0
    assert result.output.count("waiting: restarting") == 1
    assert result.output.count("Step 10/120") == 1
    asked = [request for request in gateway.requests if request.url.path.endswith("/events")]
    assert [request.headers.get("last-event-id") for request in asked] == [
        None,
        *["ftevent-010"] * 3,
    ]
    assert dict(asked[0].url.params) == {"stream": "true", "progress": "true"}


def test_a_gateway_that_cannot_stream_is_polled(gateway: FakeGateway) -> None:
    listed = [{key: value for key, value in one.items() if key != "object"} for one in EVENTS]
    gateway.answer(
        f"GET {ONE}/events",
        page(),
        page(listed[0]),
        page(listed[0]),
        page(*listed[::-1]),
    ).answer(f"GET {ONE}", job(done=10), job(done=10), DONE)
    result = run(gateway, "watch", "ftjob-1", "--json", "--samples", "0")
    assert result.exit_code == 0, result.output
    objects = [json.loads(line)["object"].rpartition(".")[2] for line in result.stdout.splitlines()]
    assert objects == ["event", "job", "event", "checkpoint", "job"]


def test_a_long_history_is_polled_to_its_beginning(gateway: FakeGateway) -> None:
    history = [event(step, 1.0) for step in range(45, 0, -1)]

    def listed(request: httpx.Request) -> httpx.Response:
        if "stream" in request.url.params:
            return httpx.Response(200, json=page())
        limit = int(request.url.params["limit"])
        return httpx.Response(200, json=page(*history[:limit]))

    gateway.answer(f"GET {ONE}/events", listed).answer(f"GET {ONE}", DONE)
    result = run(gateway, "watch", "ftjob-1", "--samples", "0")
    steps = [line.split()[2] for line in result.output.splitlines() if "Step" in line]
    assert steps == [f"{step}/120:" for step in range(1, 46)]


def test_a_stream_that_names_an_error_is_asked_again(gateway: FakeGateway) -> None:
    broken = stream('event: error\ndata: {"error": {"message": "it is gone"}}')
    gateway.answer(f"GET {ONE}/events", broken, error(404, "no such job"))
    result = run(gateway, "watch", "ftjob-1")
    assert "waiting: it is gone" in result.output
    assert isinstance(result.exception, NotFound)


def test_json_lines_are_all_that_programs_read(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}/events", told(*EVENTS, DONE))
    result = run(gateway, "watch", "ftjob-1", "--json", "--samples", "1")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["object"].removeprefix("fine_tuning.job") for one in found] == [
        ".event",
        ".event",
        ".checkpoint",
        "",
        ".sample",
    ]
    assert found[-1] == {
        "object": "fine_tuning.job.sample",
        "before_model": "demo",
        "after_model": TUNED,
        "prompt": "a",
        "before": "demo on a",
        "after": f"{TUNED} on a",
        "wanted": "A",
    }
    assert "succeeded after" in result.stderr


def test_leaving_the_watch_leaves_the_job(gateway: FakeGateway) -> None:
    def left(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    gateway.answer(f"GET {ONE}/events", left)
    result = run(gateway, "watch", "ftjob-1")
    assert result.exit_code == 130
    assert "ftjob-1 goes on" in result.output
    assert "millrace tune watch ftjob-1" in result.output
    assert "millrace tune cancel ftjob-1" in result.output
    assert [request.method for request in gateway.requests] == ["GET"]


def test_leaving_while_models_answer_says_nothing_of_the_job(gateway: FakeGateway) -> None:
    def left(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    gateway.answer(f"GET {ONE}/events", told(DONE)).answer("POST /v1/chat/completions", left)
    result = run(gateway, "watch", "ftjob-1")
    assert result.exit_code == 130
    assert "goes on" not in result.output


def test_on_a_terminal_there_is_a_picture(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(tuning_watch, "Console", output.Console)
    gateway.answer(f"GET {ONE}/events", told(*EVENTS, job(done=40), DONE))
    result = run(gateway, "watch", "ftjob-1")
    assert result.exit_code == 0, result.output
    assert "✔ rollout" in result.output
    assert f"{TUNED}:ckpt-step-40" in result.output
    assert "━━" in result.output, "the table of samples"
    assert "Step 10/120: training" not in result.output.splitlines()[0]


def test_events_and_checkpoints_are_listed(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}/events", page(*EVENTS[::-1]))
    assert run(gateway, "events", "ftjob-1").output.index("Step 10") == 9
    lines = run(gateway, "events", "ftjob-1", "--json").output.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["ftevent-010", "ftevent-040"]
    assert f"{TUNED}:ckpt-step-40" in run(gateway, "checkpoints", "ftjob-1").output
    gateway.answer(f"GET {ONE}/events", told(*EVENTS, DONE))
    assert len(run(gateway, "events", "ftjob-1", "--follow").output.splitlines()) == 2


def test_metrics_of_an_ended_job_are_its_result_file(gateway: FakeGateway) -> None:
    content = "step,train_loss,valid_loss\n1,2.5,\n2,2.25,2.4\n"
    gateway.answer(f"GET {ONE}", {**DONE, "result_files": ["file-r"]})
    gateway.answer("GET /v1/files/file-r/content", lambda _: httpx.Response(200, text=content))
    assert run(gateway, "metrics", "ftjob-1", "--csv").output == content
    table = run(gateway, "metrics", "ftjob-1", "-n", "1").output.splitlines()
    assert [line.split() for line in table] == [
        ["step", "train_loss", "valid_loss"],
        ["2", "2.25", "2.4"],
    ]
    rows = json.loads(run(gateway, "metrics", "ftjob-1", "--json").stdout)
    assert rows[0] == {"step": "1", "train_loss": "2.5", "valid_loss": ""}


def test_metrics_of_a_running_job_are_what_it_told(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}", job())
    gateway.answer(f"GET {ONE}/events", page(event(20, 3.0), event(10, 3.5)))
    assert run(gateway, "metrics", "ftjob-1", "--csv").output == (
        "step,train_loss\n10,3.5\n20,3.0\n"
    )
    gateway.answer(f"GET {ONE}/events", page())
    assert "nothing was measured yet" in run(gateway, "metrics", "ftjob-1").output


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_a_job_is_steered(gateway: FakeGateway, verb: str) -> None:
    gateway.answer(f"POST {ONE}/{verb}", job())
    assert json.loads(run(gateway, verb, "ftjob-1", "--json").stdout)["id"] == "ftjob-1"


def test_the_list_says_how_each_learns(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {PATH}", page(job(done=30)))
    assert "dpo, dora rank 8" in run(gateway, "list").output


def test_method_of_refuses_what_does_not_go_together() -> None:
    with pytest.raises(typer.BadParameter):
        tune_options.method_of({"method": "kto", "loss": "ipo"})
