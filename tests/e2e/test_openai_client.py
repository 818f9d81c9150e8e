"""What users of the `openai` package rely on, with the package as it is."""

import subprocess
import sys
from pathlib import Path

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.lifecycle import Mesh


def test_a_file_comes_back_as_it_went(mesh: Mesh, examples: Path) -> None:
    with examples.open("rb") as stream:
        file = mesh.openai.files.create(file=stream, purpose="fine-tune")
    assert mesh.openai.files.content(file.id).read() == examples.read_bytes()
    assert file.id in [listed.id for listed in mesh.openai.files.list()]
    assert mesh.openai.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        mesh.openai.files.retrieve(file.id)


def test_a_chat_is_answered_and_counted(mesh: Mesh, model: str) -> None:
    answer = mesh.openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "def read("}],
        max_tokens=8,
        temperature=0,
        seed=1,
    )
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.prompt_tokens > 0
    again = mesh.openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "def read("}],
        max_tokens=8,
        temperature=0,
        seed=1,
    )
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_a_completion_stops_where_it_is_told(mesh: Mesh, model: str) -> None:
    whole = mesh.openai.completions.create(
        model=model, prompt="import os\n", max_tokens=24, temperature=0
    )
    text = whole.choices[0].text
    assert len(text) > 4
    stop = text[3]
    cut = mesh.openai.completions.create(
        model=model, prompt="import os\n", max_tokens=24, temperature=0, stop=stop
    )
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_an_unknown_model_is_said_so(mesh: Mesh) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        mesh.openai.chat.completions.create(
            model="nobody", messages=[{"role": "user", "content": "hello"}]
        )
    assert caught.value.code == "model_not_found"


def test_a_tuned_model_streams(mesh: Mesh, tuned: FineTuningJob) -> None:
    assert tuned.fine_tuned_model
    assert tuned.fine_tuned_model.startswith("ft:plain:")
    stream = mesh.openai.chat.completions.create(
        model=tuned.fine_tuned_model,
        messages=[{"role": "user", "content": "What is 2 + 2?"}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage
    assert 0 < chunks[-1].usage.completion_tokens <= 12


def test_a_job_tells_its_story(mesh: Mesh, tuned: FineTuningJob) -> None:
    jobs = mesh.openai.fine_tuning.jobs
    messages = [event.message for event in jobs.list_events(tuned.id, limit=100)]
    assert messages[-1].startswith("Created fine-tuning job")
    assert any("training loss" in message for message in messages)
    checkpoints = list(jobs.checkpoints.list(tuned.id))
    assert len(checkpoints) == 2
    assert checkpoints[0].step_number > checkpoints[1].step_number
    assert checkpoints[0].metrics.train_loss
    assert tuned.trained_tokens
    assert tuned.result_files
    results = mesh.openai.files.content(tuned.result_files[0]).text
    assert results.startswith("step,")
    assert tuned.id in [job.id for job in jobs.list()]


def test_everything_a_model_came_from_is_known(mesh: Mesh, tuned: FineTuningJob) -> None:
    version = mesh.get(f"/versions?model={tuned.fine_tuned_model}")["data"][0]
    lineage = mesh.get(f"/lineage/{version['id']}")
    kinds = {node["kind"] for node in lineage["nodes"]}
    assert {"file", "dataset", "run", "job", "checkpoint", "compression", "version"} <= kinds


def test_the_environment_is_all_that_unmodified_code_needs(mesh: Mesh, model: str) -> None:
    program = (
        "from openai import OpenAI\n"
        f"answer = OpenAI().completions.create(model={model!r}, prompt='import', max_tokens=2)\n"
        "print(answer.usage.completion_tokens)\n"
    )
    cli = Path(sys.executable).parent / "millrace"
    environment = {
        "PATH": "/usr/bin:/bin",
        "MILLRACE_HOME": str(mesh.layout.home.path),
        "MILLRACE_BASE_PORT": str(mesh.layout.base_port),
    }
    shell = f'eval "$({cli} env)" && exec {sys.executable} -c "$PROGRAM"'
    done = subprocess.run(
        ["bash", "-c", shell],
        env={**environment, "PROGRAM": program},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) in (1, 2)


def test_a_tuned_model_says_when_served_what_it_said_when_trained(
    mesh: Mesh, tuned: FineTuningJob
) -> None:
    parity = mesh.get(f"/versions/{tuned.fine_tuned_model}")["measurements"]["parity"]
    stages = {stage["stage"]: stage for stage in parity["stages"]}
    assert list(stages) == ["adapter", "merge", "template", "quantisation", "serving"]
    assert [stage["mismatch"] for stage in stages.values()] == [None] * len(stages)
    assert parity["probes"] >= 8
    assert stages["template"]["tokens"] > 100
    for name in ("adapter", "merge", "quantisation", "serving"):
        stage = stages[name]
        assert stage["tokens"] > 50
        assert 0 <= stage["mean_difference"] <= stage["mean_limit"]


def test_a_tuned_model_has_a_card(mesh: Mesh, tuned: FineTuningJob) -> None:
    response = mesh.rest.get(f"/models/{tuned.fine_tuned_model}/card")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/markdown")
    assert response.text.startswith("---\nbase_model: ")
    assert f"# {tuned.fine_tuned_model}\n" in response.text
    assert "## Parity\n" in response.text
