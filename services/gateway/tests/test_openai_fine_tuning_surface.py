"""OPENAI.md against the ``openai`` package itself, and what of the tables no other test tries."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import openai
import pytest
import sdk_surface
from gateway_mesh import Mesh
from sdk_surface import Call

from millrace.tuner.v1 import service_pb2 as tuner_pb2

TABLES = Path(__file__).parents[1] / "OPENAI.md"
STATUSES = {"as there", "differs", "refused", "ours"}
LINES = b'{"messages":[]}\n' * 12
TUNED = "ft:demo:default:docs:k3x9ab"


@dataclass(frozen=True)
class Line:
    """A line of a table: which calls and fields it speaks of, by patterns."""

    calls: Sequence[str]
    fields: Sequence[str]
    status: str

    def is_about(self, call: Call) -> bool:
        return any(
            fnmatchcase(call.name, pattern) or fnmatchcase(call.name, f"*.{pattern}")
            for pattern in self.calls
        )

    def says(self, field: str) -> bool:
        return any(fnmatchcase(field, pattern) for pattern in self.fields)


def lines() -> list[Line]:
    rows = [row for row in TABLES.read_text().splitlines() if row.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return [Line(ticked(call), ticked(field), status) for call, field, status, _ in cells]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def wanted(call: Call) -> list[tuple[str, ...]]:
    """For each field the ways to write it; one that is asked may not stand as an answer alone."""
    answered = [(f"→ {field}", field) for field in call.answered]
    return [*((field,) for field in call.asked), *answered]


CALLS = list(sdk_surface.calls())


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_the_tables_have_every_field_of_a_call(call: Call) -> None:
    about = [line for line in lines() if line.is_about(call)]
    assert any(line.calls != ["*"] for line in about), "no line names the call"
    missing = [
        ways[0]
        for ways in wanted(call)
        if not any(line.says(way) for line in about for way in ways)
    ]
    assert missing == []


def test_the_tables_have_nothing_that_the_package_has_not() -> None:
    for line in lines():
        if line.status == "ours":
            continue
        about = [call for call in CALLS if line.is_about(call)]
        assert about, line
        ways = {way for call in about for one in wanted(call) for way in one}
        for pattern in line.fields:
            assert any(fnmatchcase(way, pattern) for way in ways), (line.calls, pattern)


def test_every_line_says_something_definite() -> None:
    for line in lines():
        assert line.status in STATUSES, line
        assert line.fields, line
        # A pattern whose end is open would say something of fields that nobody thought of.
        assert not any(pattern.endswith("*") for pattern in line.fields), line


def test_the_walk_finds_what_is_known_to_be_there() -> None:
    found = {call.name: call for call in CALLS}
    create = found["fine_tuning.jobs.create"]
    assert "method.reinforcement.hyperparameters.eval_interval" in create.asked
    assert {"grader.sampling_params.top_p", "integrations.wandb.tags"} < set(create.asked)
    assert "metrics.full_valid_loss" in found["fine_tuning.jobs.checkpoints.list"].answered
    assert len(found) >= 35


def started(mesh: Mesh, **fields: Any) -> Any:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    return client.fine_tuning.jobs.create(model="demo", training_file=file.id, **fields)


def test_a_seed_is_made_where_none_is_given(mesh: Mesh) -> None:
    seeds = {started(mesh).seed for _ in range(3)}
    assert len(seeds) == 3
    assert started(mesh, seed=7).seed == 7


def test_a_request_that_is_sent_again_asks_for_the_same_seed(mesh: Mesh) -> None:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    for _ in range(2):
        client.fine_tuning.jobs.create(
            model="demo", training_file=file.id, extra_headers={"Idempotency-Key": "once"}
        )
    first, second = mesh.tuner.created[-2:]
    assert first.request_id == "once"
    assert first == second


WANDB = {"project": "docs", "name": "first", "entity": "team", "tags": ["blue", "green"]}


def test_weights_and_biases_is_told_to_mlflow(mesh: Mesh) -> None:
    job = started(mesh, integrations=[{"type": "wandb", "wandb": WANDB}])
    (sent,) = mesh.tuner.created[-1].integrations
    assert sent == tuner_pb2.Integration(
        type="wandb", experiment="docs", run_name="first", entity="team", tags=["blue", "green"]
    )
    (told,) = job.integrations
    assert told.wandb.model_dump() == WANDB
    assert told.model_dump()["tracked_in"] == "mlflow"


def test_mlflow_by_its_own_name(mesh: Mesh) -> None:
    job = started(mesh, integrations=[{"type": "mlflow", "mlflow": {"experiment": "docs"}}])
    (told,) = [one.model_dump() for one in job.integrations]
    assert told["mlflow"] == {"experiment": "docs", "name": None, "tags": []}
    assert started(mesh, integrations=[{"type": "mlflow"}]).integrations[0].type == "mlflow"
    assert started(mesh, integrations=[]).integrations == []
    assert started(mesh, integrations=None).integrations == []


def test_checkpoints_have_all_of_the_packages_metrics(mesh: Mesh) -> None:
    job = started(mesh)
    mesh.tuner.finish(f"tenants/default/jobs/{job.id}")
    for checkpoint in mesh.tuner.checkpoints.rows.values():
        checkpoint.valid_loss = 1.5
        checkpoint.metrics["valid_mean_token_accuracy"] = 0.5
    metrics = mesh.openai().fine_tuning.jobs.checkpoints.list(job.id).data[0].metrics
    assert metrics.model_dump(exclude={"measurements", "train_loss", "step"}) == {
        "full_valid_loss": 1.5,
        "full_valid_mean_token_accuracy": 0.5,
        "train_mean_token_accuracy": None,
        "valid_loss": 1.5,
        "valid_mean_token_accuracy": 0.5,
    }


def test_the_job_object_has_every_field_of_the_packages(mesh: Mesh) -> None:
    job = started(mesh, suffix="docs")
    assert set(type(job).model_fields) <= set(job.model_fields_set)
    assert (job.organization_id, job.error, job.estimated_finish) == ("default", None, None)
    assert (job.trained_tokens, job.finished_at, job.result_files) == (None, None, [])


def test_a_deleted_model_is_not_found(mesh: Mesh) -> None:
    mesh.serve_routes([mesh.route(), mesh.route(TUNED)])
    mesh.registry.models.add(TUNED)
    client = mesh.openai()
    model = client.models.retrieve(TUNED)
    assert model.shutdown_date is None
    assert client.models.delete(TUNED).model_dump() == {
        "id": TUNED,
        "deleted": True,
        "object": "model",
    }
    mesh.serve_routes([mesh.route()])
    for ask in (
        lambda: client.models.retrieve(TUNED),
        lambda: client.completions.create(model=TUNED, prompt="x"),
        lambda: client.chat.completions.create(
            model=TUNED, messages=[{"role": "user", "content": "x"}]
        ),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_a_checkpoint_is_not_deleted_by_itself(mesh: Mesh) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai().models.delete(f"{TUNED}:ckpt-step-5")
    assert caught.value.code == "not_a_model"
    assert TUNED in str(caught.value)


def test_reasoning_effort(mesh: Mesh) -> None:
    grader = {"type": "string_check", "name": "n", "operation": "eq", "input": "a"}
    grader["reference"] = "a"
    for effort in ("low", "medium", "high"):
        wanted = {"grader": grader, "hyperparameters": {"reasoning_effort": effort}}
        with pytest.raises(openai.BadRequestError) as caught:
            started(mesh, method={"type": "reinforcement", "reinforcement": wanted})
        assert caught.value.param == "method.reinforcement.hyperparameters.reasoning_effort"
