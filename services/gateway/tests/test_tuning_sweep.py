"""``sweep`` of a fine-tuning job, as the SDK sends what it does not know."""

from typing import Any

import openai
import pytest
from gateway_mesh import Mesh
from pydantic import ValidationError

from millrace.tuner.v1 import sweep_pb2 as pb
from millrace_gateway.rest.tuning_sweep import Sweep, sweep_fields, sweep_message, sweep_object
from millrace_runtime.errors import InvalidArgument

ASKED = {
    "trials": 4,
    "parameters": {
        "learning_rate_multiplier": {"low": 0.1, "high": 4, "log": True},
        "n_epochs": {"low": 1, "high": 3},
        "batch_size": {"choices": [4, 8]},
    },
}
LINES = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n' * 10


def create(mesh: Mesh, sweep: Any) -> Any:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    return client.fine_tuning.jobs.create(
        model="demo", training_file=file.id, extra_body={"sweep": sweep}
    )


def test_a_sweep_reaches_the_tuner_and_is_shown_in_the_job(mesh: Mesh) -> None:
    job = create(mesh, ASKED)
    made = mesh.tuner.jobs.rows[f"tenants/default/jobs/{job.id}"]
    assert sorted(made.sweep.parameters) == ["batch_size", "epochs", "learning_rate_multiplier"]
    assert not made.sweep.HasField("pruning")
    shown = mesh.openai().fine_tuning.jobs.retrieve(job.id).model_extra["sweep"]
    assert shown["trials"] == 4
    assert shown["parameters"] == {
        "batch_size": {"choices": [4, 8]},
        "learning_rate_multiplier": {"low": 0.1, "high": 4, "log": True},
        "n_epochs": {"low": 1, "high": 3, "log": False},
    }
    made.result_file, made.trials_file = "tenants/default/files/a", "tenants/default/files/b"
    assert mesh.openai().fine_tuning.jobs.retrieve(job.id).result_files == ["a", "b"]


@pytest.mark.parametrize(
    ("sweep", "param"),
    [
        ({}, "sweep.trials"),
        ({"trials": "4"}, "sweep.trials"),
        ({"trials": 4, "space": {}}, "sweep.space"),
        ({"trials": 4, "parameters": {"beta": {"min": 1}}}, "sweep.parameters.beta.min"),
        ({"trials": 4, "parameters": {"beta": {"choices": []}}}, "sweep.parameters.beta.choices"),
        ({"trials": 4, "direction": "up"}, "sweep.direction"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(mesh: Mesh, sweep: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(mesh, sweep)
    assert caught.value.param == param


def test_a_parameter_has_one_name_at_a_time() -> None:
    both = {"epochs": {"low": 1, "high": 2}, "n_epochs": {"low": 1, "high": 2}}
    with pytest.raises(InvalidArgument) as caught:
        sweep_message(Sweep.model_validate({"trials": 2, "parameters": both}))
    assert caught.value.field == "sweep.parameters.n_epochs"
    with pytest.raises(ValidationError):
        Sweep.model_validate({"trials": 2, "parameters": {"beta": {"low": float("nan")}}})


def test_errors_are_renamed_and_choices_kept() -> None:
    sweep = Sweep.model_validate({"trials": 2, "pruning": False, "patience": 3})
    assert sweep_fields(sweep)["sweep.parameters.epochs.low"] == "sweep.parameters.n_epochs.low"
    assert sweep_fields(None) == {}
    message = sweep_message(sweep)
    assert message == pb.Sweep(trials=2, pruning=False, patience=3)
    assert sweep_object(message)["pruning"] is False
