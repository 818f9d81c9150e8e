"""A deployment that names a task: its artifacts are measured and judged by it."""

from pathlib import Path

from tests.e2e.lifecycle import Mesh


def test_what_does_not_do_its_deployments_task_is_not_served(
    mesh: Mesh, dataset: str, examples: Path
) -> None:
    with examples.open("rb") as stream:
        file = mesh.openai.files.create(file=stream, purpose="fine-tune").id
    task = {"file": file, "metric": "contains", "rows": 8, "max_answer_tokens": 8}
    gate = {"max_perplexity_increase": 0.05, "min_task_score": 0.9}
    wanted = {"model": "tasked", "tracking": "final", "task": task, "gate": gate}
    deployment = mesh.post("/deployments", wanted)
    mesh.ended(f"/training/runs/{mesh.start_run('tasked', dataset, total_steps=20)}")
    (made,) = mesh.until(
        lambda: mesh.get("/compressions?model=tasked")["data"], "its compression is ordered"
    )
    done = mesh.ended(f"/compressions/{made['id']}")
    assert (done["status"], done["deployment"]) == ("succeeded", deployment["id"]), done["error"]
    measured = done["measurements"]["task"]
    assert (measured["rows"], measured["file"]) == (8, file)
    assert measured["artifact_score"] < 0.9, "nobody has taught it sums"
    assert done["verdict"]["passed"] is False
    assert f"task score is {measured['artifact_score']:.4g}" in done["verdict"]["reasons"][0]
    rows = mesh.get(f"/compressions/{made['id']}/report")["rows"]
    (row,) = (row for row in rows if row["name"] == "contains of 8 answers")
    assert row["original"] == measured["original_score"]
    assert mesh.get("/versions?model=tasked")["data"] == []
