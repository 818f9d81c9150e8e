"""Preferences, asked for with the `openai` package and learned by a real job on a real mesh."""

import json

from openai.types.fine_tuning import FineTuningJob

from tests.e2e.lifecycle import Mesh

_ROWS = 24


def _pairs() -> bytes:
    """In OpenAI's preference format: short answers are better than long ones."""

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"What is {n} + {n}?"}]},
            "preferred_output": said(f"{2 * n}."),
            "non_preferred_output": said(f"I would say that it may be {2 * n}."),
        }
        for n in range(_ROWS)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_model_learns_preferences_and_is_served(mesh: Mesh, model: str) -> None:
    client = mesh.openai
    file = client.files.create(file=("pairs.jsonl", _pairs()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=file.id,
        suffix="short",
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}},
    )
    assert job.status == "validating_files"

    def ended() -> FineTuningJob | None:
        found = client.fine_tuning.jobs.retrieve(job.id)
        return found if found.status in ("succeeded", "failed", "cancelled") else None

    found = mesh.until(ended, "the preference job ends", 240)
    assert found.status == "succeeded", found.error
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any(message.startswith("Parity with the model in training") for message in told)
    assert any("reward accuracy" in message for message in told)
    answer = client.chat.completions.create(
        model=str(found.fine_tuned_model),
        messages=[{"role": "user", "content": "What is 3 + 3?"}],
        max_tokens=8,
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_file_for_another_method_fails_its_job_while_files_are_validated(
    mesh: Mesh, model: str
) -> None:
    client = mesh.openai
    file = client.files.create(file=("pairs.jsonl", _pairs()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=file.id,
        method={"type": "classification"},  # type: ignore[typeddict-item]  # beyond OpenAI's
    )
    mesh.until(
        lambda: client.fine_tuning.jobs.retrieve(job.id).status == "failed", "the job fails", 120
    )
    found = client.fine_tuning.jobs.retrieve(job.id)
    assert found.error is not None
    assert found.error.param == "training_file"
    assert "classification" in found.error.message
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert "Fine-tuning job started" not in told
