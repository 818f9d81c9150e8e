"""Checkpoints by their step: ``model:ckpt-step-N``, also while the run still trains."""

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.lifecycle import Mesh

EVERY = 20


def version_that_answers(mesh: Mesh, model: str) -> str:
    """``model@version``, as the answer's header says it; a client that tries again is enough."""
    client = mesh.openai.with_options(max_retries=20)
    answer = client.completions.with_raw_response.create(model=model, prompt="import", max_tokens=2)
    assert answer.parse().usage
    return str(answer.headers["x-millrace-version"])


def wait_for_versions(mesh: Mesh, tuned: FineTuningJob) -> None:
    """A job succeeds with its last checkpoint; an earlier one may still be compressed then."""
    saved = mesh.openai.fine_tuning.jobs.checkpoints.list(tuned.id).data
    steps = {checkpoint.step_number for checkpoint in saved}

    def are_versions() -> bool:
        return steps <= set(mesh.get(f"/models/{tuned.fine_tuned_model}")["checkpoint_steps"])

    mesh.until(are_versions, "all checkpoints have become versions", 240)


def step_of(mesh: Mesh, version: str) -> int:
    return int(mesh.get(f"/versions/{version}")["checkpoint_step"])


def test_two_checkpoints_answer_while_their_run_trains(mesh: Mesh, dataset: str) -> None:
    run = mesh.start_run("by-step", dataset, total_steps=4000, checkpoint_every_steps=EVERY)

    def steps() -> list[int]:
        found: list[int] = mesh.get("/models/by-step")["checkpoint_steps"]
        return found

    mesh.until(lambda: len(steps()) > 1, "two checkpoints have become versions", 400)
    first, second = steps()[:2]
    versions = [version_that_answers(mesh, f"by-step:ckpt-step-{at}") for at in (first, second)]
    assert [step_of(mesh, version) for version in versions] == [first, second]
    assert mesh.get(f"/training/runs/{run}")["status"] == "running"
    mesh.post(f"/training/runs/{run}/cancel", {})
    mesh.ended(f"/training/runs/{run}")
    # None is lost: both go on answering, whichever serves by now.
    assert version_that_answers(mesh, f"by-step:ckpt-step-{first}") == versions[0]


def test_a_tuned_models_checkpoint_answers_by_the_name_that_its_job_tells(
    mesh: Mesh, tuned: FineTuningJob
) -> None:
    last, first = mesh.openai.fine_tuning.jobs.checkpoints.list(tuned.id)
    assert last.fine_tuned_model_checkpoint == tuned.fine_tuned_model
    assert first.fine_tuned_model_checkpoint == (
        f"{tuned.fine_tuned_model}:ckpt-step-{first.step_number}"
    )
    wait_for_versions(mesh, tuned)
    version = version_that_answers(mesh, first.fine_tuned_model_checkpoint)
    assert step_of(mesh, version) == first.step_number
    found = mesh.openai.models.retrieve(first.fine_tuned_model_checkpoint)
    assert found.id == first.fine_tuned_model_checkpoint
    names = {tuned.fine_tuned_model, first.fine_tuned_model_checkpoint}

    def are_listed() -> bool:
        return names <= {model.id for model in mesh.openai.models.list()}

    # It may have answered on its way out, before the registry heard that it is asked for.
    mesh.until(are_listed, "the checkpoint is listed beside its model", 60)


def test_a_tuned_models_checkpoint_is_shared_with_another_project(
    mesh: Mesh, tuned: FineTuningJob
) -> None:
    assert tuned.fine_tuned_model
    permissions = mesh.openai.fine_tuning.checkpoints.permissions
    other = mesh.openai.with_options(api_key=mesh.post("/keys", {"tenant": "friends"})["secret"])
    (given,) = permissions.create(tuned.fine_tuned_model, project_ids=["friends"])
    answer = other.completions.create(model=tuned.fine_tuned_model, prompt="import", max_tokens=2)
    assert answer.usage is not None
    assert [model.id for model in other.models.list()] == [tuned.fine_tuned_model]
    permissions.delete(given.id, fine_tuned_model_checkpoint=tuned.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        other.completions.create(model=tuned.fine_tuned_model, prompt="import", max_tokens=2)


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(
    mesh: Mesh, tuned: FineTuningJob
) -> None:
    saved = mesh.openai.fine_tuning.jobs.checkpoints.list(tuned.id).data
    wait_for_versions(mesh, tuned)
    with pytest.raises(openai.NotFoundError) as caught:
        mesh.openai.completions.create(
            model=f"{tuned.fine_tuned_model}:ckpt-step-9999", prompt="import", max_tokens=2
        )
    assert caught.value.code == "model_not_found"
    assert all(str(checkpoint.step_number) in str(caught.value) for checkpoint in saved)
