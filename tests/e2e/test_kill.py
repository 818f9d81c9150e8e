"""kill -9 of any one process in mid-work: the same end state as without."""

from collections import Counter
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.lifecycle import Mesh

STEPS = 60
EVERY = 20


def start(mesh: Mesh, model: str, dataset: str) -> str:
    return mesh.start_run(model, dataset, total_steps=STEPS, checkpoint_every_steps=EVERY)


def progress(mesh: Mesh, run: str) -> int:
    found = mesh.get(f"/training/runs/{run}")["progress"]
    return int(found["completed"]) if found and found["phase"] == "train" else 0


def of_model(mesh: Mesh, collection: str, model: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mesh.get(f"/{collection}?model={model}&limit=100")["data"]
    return found


def assert_undisturbed_end(mesh: Mesh, model: str, run_id: str) -> None:
    """The end that the run comes to when nothing is killed."""
    run = mesh.ended(f"/training/runs/{run_id}")
    assert run["status"] == "succeeded", run["error"]
    checkpoints = mesh.get(f"/training/runs/{run_id}/checkpoints")["data"]
    assert [c["step"] for c in checkpoints] == list(range(STEPS, 0, -EVERY))
    final = checkpoints[0]["name"]

    def served() -> bool:
        versions = of_model(mesh, "versions", model)
        return any(v["checkpoint"] == final and v["status"] == "serving" for v in versions)

    mesh.until(served, f"{model}'s last checkpoint is served", 240)
    compressions = of_model(mesh, "compressions", model)
    per_checkpoint = Counter(c["checkpoint"] for c in compressions)
    assert per_checkpoint == Counter(c["name"] for c in checkpoints)
    passed = [c["id"] for c in compressions if c["status"] == "succeeded"]
    versions = of_model(mesh, "versions", model)
    assert sorted(v["compression"] for v in versions) == sorted(passed)
    rollouts = Counter(r["to_version"] for r in of_model(mesh, "rollouts", model))
    assert rollouts == Counter(v["version"] for v in versions)
    facts = [f for f in mesh.facts() if mentions(f, run_id, model)]
    assert len({f["id"] for f in facts}) == len(facts)
    once = Counter((f["type"], identity(f)) for f in facts)
    assert [what for what, count in once.items() if count > 1] == []


def mentions(fact: dict[str, Any], run: str, model: str) -> bool:
    data = fact["data"]
    of_run = any(run in str(value) for value in data.values())
    return of_run or data.get("model") == model


def identity(fact: dict[str, Any]) -> str:
    """What a fact is about; of each, there may be one."""
    data = fact["data"]
    about = ("checkpoint", "compression", "version", "rollout", "run")
    if fact["type"].endswith("RolloutAdvanced"):
        return f"{data['rollout']} {data.get('traffic_share')}"
    if fact["type"].startswith("millrace.registry.v1.Rollout"):
        return str(data["rollout"])
    return str(next(data[key] for key in about if key in data))


def test_the_trainer_in_mid_epoch(mesh: Mesh, dataset: str) -> None:
    run = start(mesh, "kill-trainer", dataset)
    mesh.until(lambda: progress(mesh, run) > EVERY, "the run is past its first checkpoint")
    mesh.kill("trainer")
    assert_undisturbed_end(mesh, "kill-trainer", run)


def test_the_compressor_in_mid_quantisation(mesh: Mesh, dataset: str) -> None:
    run = start(mesh, "kill-compressor", dataset)

    def compressing() -> bool:
        found = of_model(mesh, "compressions", "kill-compressor")
        return any(c["status"] == "running" and c["progress"] for c in found)

    mesh.until(compressing, "a compression runs")
    mesh.kill("compressor")
    assert_undisturbed_end(mesh, "kill-compressor", run)


def test_the_registry_in_mid_canary(mesh: Mesh, dataset: str) -> None:
    run = start(mesh, "kill-registry", dataset)

    def in_canary() -> bool:
        found = of_model(mesh, "rollouts", "kill-registry")
        return any(r["status"] == "canary" for r in found)

    mesh.until(in_canary, "a canary", 180)
    mesh.kill("registry")
    assert_undisturbed_end(mesh, "kill-registry", run)


@pytest.mark.parametrize("process", ["nats", "triton"])
def test_what_the_services_stand_on(mesh: Mesh, dataset: str, process: str) -> None:
    model = f"kill-{process}"
    run = start(mesh, model, dataset)
    mesh.until(lambda: progress(mesh, run) > EVERY, "the run is past its first checkpoint")
    mesh.kill(process)
    assert_undisturbed_end(mesh, model, run)


def test_models_answer_after_triton_lost_everything(mesh: Mesh, model: str) -> None:
    mesh.kill("triton")

    def answers() -> bool:
        path, body = "/completions", {"model": model, "prompt": "import", "max_tokens": 2}
        return mesh.rest.post(path, json=body).status_code == 200

    mesh.until(answers, "the model answers again", 60)


@pytest.mark.parametrize(
    "processes",
    [("registry",), ("gateway",), ("triton",), ("registry", "gateway", "triton")],
    ids="+".join,
)
def test_a_tuned_model_that_is_ready_answers_after_any_restart(
    mesh: Mesh, model: str, tuned: FineTuningJob, processes: tuple[str, ...]
) -> None:
    """The same version, with the same words."""
    # What a process knows of a trace is lost with it: these requests are none of the mesh's trace.
    apart = {"traceparent": ""}

    def answer(asked: str | None = tuned.fine_tuned_model) -> tuple[str, str]:
        body = {"model": asked, "prompt": "import", "max_tokens": 4, "temperature": 0}
        response = mesh.rest.post("/completions", json=body, headers=apart)
        assert response.status_code == 200, response.text
        return response.headers["x-millrace-version"], response.json()["choices"][0]["text"]

    def settled_answer() -> tuple[str, str] | None:
        """The serving version's; a gateway hears a moment after the job what has settled."""
        path = f"/versions?model={tuned.fine_tuned_model}"
        versions = mesh.rest.get(path, headers=apart).raise_for_status().json()["data"]
        serving = [version["id"] for version in versions if version["status"] == "serving"]
        found = answer()
        return found if [found[0]] == serving else None

    before = mesh.until(settled_answer, "the tuned model answers", 60)
    killed = {process: mesh.kill(process) for process in processes}
    for process, pid in killed.items():
        mesh.until(lambda p=process, was=pid: mesh.pid(p) != was, f"{process} runs again", 60)
    assert mesh.until(settled_answer, "the tuned model answers again", 120) == before
    mesh.until(lambda: answer(model), "so does its base", 120)
    job = mesh.openai.fine_tuning.jobs.retrieve(tuned.id, extra_headers=apart)
    assert job.status == "succeeded"
