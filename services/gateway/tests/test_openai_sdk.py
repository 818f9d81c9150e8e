"""The unmodified ``openai`` package against the gateway."""

import json
import re
from typing import Any

import openai
import pytest
from gateway_fakes import Answer
from gateway_mesh import Mesh

LINES = b'{"messages":[]}\n' * 12


def test_chat(mesh: Mesh) -> None:
    answer = mesh.openai().chat.completions.with_raw_response.create(
        model="demo",
        messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        temperature=0.5,
        top_p=0.9,
        seed=7,
        max_tokens=32,
        stop=["\n\n"],
    )
    completion = answer.parse()
    assert completion.choices[0].message.content == "Hello 🙂"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
    }
    assert completion.system_fingerprint == "fp_" + "ab" * 8
    assert answer.headers["x-millrace-version"] == "demo@1"
    assert answer.headers["x-request-id"].startswith("req-")
    assert len(answer.headers["x-millrace-trace-id"]) == 32
    (request,) = mesh.triton.requests
    assert request["model"] == "default.demo"
    assert request["version"] == "1"
    assert request["prompt"] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert request["sampling"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "max_tokens": 32,
        "stop": ["\n\n"],
    }


def test_chat_stream_with_usage(mesh: Mesh) -> None:
    mesh.triton.answer = Answer(["a", "b\n", '"c"'], finish_reason="length")
    stream = mesh.openai().chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=3,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == 'ab\n"c"'
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1
    assert mesh.triton.requests[0]["sampling"] == {"max_tokens": 3}


def test_stream_ends_with_done_and_says_usage_only_when_asked(mesh: Mesh) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with mesh.http().stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line[6:]) for line in lines[:-1])


def test_completion(mesh: Mesh) -> None:
    client = mesh.openai()
    completion = client.completions.create(model="demo", prompt="def add(", temperature=0)
    assert completion.choices[0].text == "Hello 🙂"
    assert completion.usage is not None and completion.usage.completion_tokens == 3
    client.completions.create(model="demo", prompt=[1, 2, 3], max_tokens=5)
    first, second = mesh.triton.requests
    assert (first["prompt"], first["sampling"]) == (
        "def add(",
        {"temperature": 0, "max_tokens": 16},
    )
    assert second["input_ids"] == [1, 2, 3]


def test_completion_stream(mesh: Mesh) -> None:
    stream = mesh.openai().completions.create(
        model="demo", prompt="x", stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "Hello 🙂"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 17),
        ("top_logprobs", 2),
        ("tools", [{"type": "custom", "custom": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "grammar"}),
        ("logit_bias", {"one": 5}),
        ("logit_bias", {"1": 101}),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["audio"]),
        ("functions", [{"name": "f"}]),
        ("prediction", {"type": "content", "content": "x"}),
        ("store", True),
        ("temperature", 9),
        ("top_p", 0),
        ("max_tokens", 0),
        ("stop", ["1", "2", "3", "4", "5"]),
    ],
)
def test_what_is_not_supported_is_refused_by_name(mesh: Mesh, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai().chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "x"}],
            extra_body={field: value},
        )
    assert caught.value.param is not None
    assert re.split(r"[.\[]", caught.value.param)[0] == field
    assert mesh.triton.requests == []


def test_what_asks_for_nothing_is_accepted(mesh: Mesh) -> None:
    mesh.openai().chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "x"}],
        n=1,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0,
        logit_bias={},
        response_format={"type": "text"},
        user="someone",
        store=False,
    )
    assert len(mesh.triton.requests) == 1


def test_unknown_field(mesh: Mesh) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai().chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "x"}],
            extra_body={"foo": 1},
        )
    assert caught.value.body == {
        "message": "Unrecognized request argument supplied: foo",
        "type": "invalid_request_error",
        "param": "foo",
        "code": "unknown_parameter",
    }


def test_wrong_content_part_names_its_place(mesh: Mesh) -> None:
    body = {
        "model": "demo",
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        ],
    }
    response = mesh.http().post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages[1].content[0]")


def test_unknown_model(mesh: Mesh) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        mesh.openai().chat.completions.create(
            model="nope", messages=[{"role": "user", "content": "x"}]
        )
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "demo" in str(caught.value)


def test_another_tenants_model_does_not_exist(mesh: Mesh) -> None:
    with pytest.raises(openai.NotFoundError):
        mesh.openai(mesh.other_secret).chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "x"}]
        )
    assert mesh.openai(mesh.other_secret).models.list().data == []


def test_wrong_and_missing_keys(mesh: Mesh) -> None:
    for secret in ("sk-mr-" + "x" * 43, "nonsense"):
        with pytest.raises(openai.AuthenticationError) as caught:
            mesh.openai(secret).models.list()
        assert caught.value.code == "invalid_api_key"


def test_files(mesh: Mesh) -> None:
    client = mesh.openai()
    made = client.files.create(file=("train ü.jsonl", LINES), purpose="fine-tune")
    assert (made.bytes, made.filename, made.status) == (len(LINES), "train ü.jsonl", "processed")
    batch = client.files.create(file=b"x" * 2_500_000, purpose="user_data")
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == LINES
    assert len(client.files.content(batch.id).read()) == 2_500_000
    assert [file.id for file in client.files.list()] == [batch.id, made.id]
    assert [file.id for file in client.files.list(order="asc")] == [made.id, batch.id]
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [made.id]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_file_pages(mesh: Mesh) -> None:
    client = mesh.openai()
    made = [client.files.create(file=b"x", purpose="user_data").id for _ in range(5)]
    page = client.files.list(limit=2)
    assert [file.id for file in page.data] == made[:2:-1]
    assert page.has_more
    assert [file.id for file in page] == made[::-1], "the SDK follows the pages by itself"
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made


def test_a_file_that_is_wrong_says_where(mesh: Mesh) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai().files.create(file=b"oops", purpose="fine-tune")
    assert "line 1" in str(caught.value)
    assert caught.value.param == "file"
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai().files.create(file=b"x", purpose="vision")
    assert caught.value.param == "purpose"


def test_another_tenants_file_does_not_exist(mesh: Mesh) -> None:
    made = mesh.openai().files.create(file=b"x", purpose="user_data")
    other = mesh.openai(mesh.other_secret)
    assert list(other.files.list()) == []
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)
    assert mesh.openai().files.retrieve(made.id).id == made.id


def test_fine_tuning(mesh: Mesh) -> None:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="demo",
        training_file=file.id,
        suffix="docs",
        seed=3,
        metadata={"team": "blue"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    assert job.status == "validating_files"
    assert job.fine_tuned_model is None
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto"
    assert job.metadata == {"team": "blue"}
    events = client.fine_tuning.jobs.list_events(job.id, limit=1)
    assert [event.message for event in events] == [
        "Validating training file",
        "Created fine-tuning job",
    ]
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    mesh.tuner.validate(f"tenants/default/jobs/{job.id}")
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    mesh.tuner.finish(f"tenants/default/jobs/{job.id}")
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded"
    assert done.fine_tuned_model == "ft:demo:default:docs:k3x9ab"
    assert done.result_files == ["file-result"]
    assert done.trained_tokens == 1234
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [c.step_number for c in checkpoints] == [10, 5]
    assert checkpoints[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-5")
    assert [listed.id for listed in client.fine_tuning.jobs.list()] == [job.id]
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        mesh.openai(mesh.other_secret).fine_tuning.jobs.retrieve(job.id)


def tuned_by(mesh: Mesh, method: Any) -> Any:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    return client.fine_tuning.jobs.create(model="demo", training_file=file.id, method=method)


def test_preference_tuning_as_the_sdk_asks_for_it(mesh: Mesh) -> None:
    asked = {"beta": 0.25, "n_epochs": 1, "batch_size": "auto"}
    job = tuned_by(mesh, {"type": "dpo", "dpo": {"hyperparameters": asked}})
    assert job.method.type == "dpo"
    assert job.method.dpo.hyperparameters.beta == 0.25
    assert job.method.dpo.hyperparameters.n_epochs == 1
    assert job.method.dpo.hyperparameters.batch_size == "auto"
    assert job.hyperparameters is None
    (sent,) = mesh.tuner.jobs.rows.values()
    assert sent.method.dpo.beta == 0.25
    assert sent.method.hyperparameters.epochs == 1


def test_reinforcement_tuning_as_the_sdk_asks_for_it(mesh: Mesh) -> None:
    grader = {
        "type": "string_check",
        "name": "same",
        "operation": "eq",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
    }
    asked = {"compute_multiplier": 2.0, "eval_interval": 3, "eval_samples": 2, "n_epochs": 1}
    method = {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": asked},
    }
    job = tuned_by(mesh, method)
    assert job.method.reinforcement.grader.operation == "eq"
    assert job.method.reinforcement.hyperparameters.eval_interval == 3
    (sent,) = mesh.tuner.jobs.rows.values()
    assert json.loads(sent.method.reinforcement.grader) == grader
    assert sent.method.reinforcement.samples_per_prompt == 16
    assert sent.method.reinforcement.evaluation_samples == 2


def test_methods_and_adapters_that_the_openai_api_has_not(mesh: Mesh) -> None:
    adapter = {"kind": "dora", "rank": 4, "full_modules": ["embed_tokens"]}
    teach = {"teacher": "demo@1", "adapter": adapter, "hyperparameters": {"temperature": 2.0}}
    job = tuned_by(mesh, {"type": "distillation", "distillation": teach})
    (sent,) = mesh.tuner.jobs.rows.values()
    assert sent.method.distillation.teacher == "demo@1"
    assert sent.method.distillation.temperature == 2.0
    assert list(sent.method.adapter.full_modules) == ["embed_tokens"]
    told = job.model_dump()["method"]["distillation"]
    assert told["adapter"] == adapter
    assert told["hyperparameters"]["temperature"] == 2.0


def test_jobs_are_listed_by_their_metadata(mesh: Mesh) -> None:
    client = mesh.openai()
    client.fine_tuning.jobs.list(metadata={"team": "blue"})
    assert dict(mesh.tuner.listed.metadata) == {"team": "blue"}
    client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
    assert mesh.tuner.listed.without_metadata


def test_fine_tuning_with_legacy_hyperparameters(mesh: Mesh) -> None:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="demo",
        training_file=file.id,
        hyperparameters={"n_epochs": 4, "learning_rate_multiplier": 0.5},
    )
    assert (job.hyperparameters.n_epochs, job.hyperparameters.learning_rate_multiplier) == (4, 0.5)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "nope"}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"training_file": "tenants/acme/files/x"}, "training_file"),
        ({"method": {"type": "distilling"}}, "method.type"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement"),
        ({"method": {"type": "dpo", "kto": {}}}, "method.kto"),
        ({"method": {"type": "dpo", "dpo": {"packing": True}}}, "method.dpo.packing"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}},
            "method.dpo.hyperparameters.beta",
        ),
        (
            {"method": {"type": "kto", "kto": {"hyperparameters": {"beta": 1000}}}},
            "method.kto.hyperparameters.beta",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"adapter": {"kind": "qlora"}}}},
            "method.supervised.adapter.kind",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 99}}}},
            "method.supervised.hyperparameters.n_epochs",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"x": 1}}}},
            "method.supervised.hyperparameters.x",
        ),
        ({"suffix": "no spaces"}, "suffix"),
        ({"seed": 2**32}, "seed"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 65),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
        ({"integrations": [{"type": "wandb"}]}, "integrations[0].wandb"),
        ({"integrations": [{"type": "comet"}]}, "integrations[0].type"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, "integrations[0].wandb.project"),
        (
            {"integrations": [{"type": "mlflow", "wandb": {"project": "p"}}]},
            "integrations[0].wandb",
        ),
        ({"integrations": [{"type": "mlflow"}] * 2}, "integrations"),
    ],
)
def test_fine_tuning_mistakes(mesh: Mesh, change: dict[str, Any], param: str) -> None:
    client = mesh.openai()
    file = client.files.create(file=LINES, purpose="fine-tune")
    body = {"model": "demo", "training_file": file.id, **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/fine_tuning/jobs", body=body, cast_to=object)
    assert caught.value.param == param
    assert mesh.tuner.jobs.rows == {}


def test_models(mesh: Mesh) -> None:
    tuned = "ft:demo:default:docs:k3x9ab"
    mesh.serve_routes([mesh.route(), mesh.route(tuned), mesh.route("secret", "acme")])
    client = mesh.openai()
    assert [model.id for model in client.models.list()] == ["demo", tuned]
    assert client.models.retrieve(tuned).owned_by == "default"
    assert client.models.delete("demo").deleted
    assert mesh.registry.deleted[-1] == "tenants/default/models/demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("secret")
    with pytest.raises(openai.NotFoundError):
        client.models.delete("nope")
