"""One mesh for all end-to-end tests, and the things that most of them start from."""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from openai.types.fine_tuning import FineTuningJob

from millrace_client.home import Home
from millrace_mesh import control
from millrace_mesh.layout import Layout
from tests.e2e.lifecycle import RECIPE, Mesh

MILLRACE = Path(sys.executable).parent / "millrace"


def _environment(layout: Layout) -> dict[str, str]:
    return {
        **os.environ,
        "MILLRACE_HOME": str(layout.home.path),
        "MILLRACE_BASE_PORT": str(layout.base_port),
    }


def _free_layout(home: Path) -> Layout:
    while True:
        layout = Layout(Home(home), random.randrange(20_000, 30_000, 100))
        if all(not _is_taken(port) for port in layout.ports.values()):
            return layout


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A running mesh; afterwards it is stopped, and nothing of it may be left running."""
    layout = _free_layout(tmp_path_factory.mktemp("mesh"))
    subprocess.run([MILLRACE, "up", "--detach"], env=_environment(layout), check=True, timeout=120)
    running = control.find(layout.home)
    assert running is not None
    family = [running.pid, *(child.pid for child in psutil.Process(running.pid).children(True))]
    opened = Mesh(layout, layout.home.operator_key_file.read_text().strip())
    yield opened
    opened.close()
    subprocess.run([MILLRACE, "down"], env=_environment(layout), check=True, timeout=120)
    assert [pid for pid in family if _is_running(pid)] == []


@pytest.fixture(scope="session")
def dataset(mesh: Mesh) -> str:
    """Id of a dataset built from a part of the standard library."""
    source = {"type": "python_standard_library"}
    made = mesh.post("/datasets", {"source": source, "recipe": RECIPE})
    ended = mesh.ended(f"/datasets/{made['id']}")
    assert ended["status"] == "succeeded", ended["error"]
    return str(ended["id"])


@pytest.fixture(scope="session")
def model(mesh: Mesh, dataset: str) -> str:
    """Id of a model that was pre-trained undisturbed, and whose last checkpoint is served."""
    run = mesh.ended(f"/training/runs/{mesh.start_run('plain', dataset)}")
    assert run["status"] == "succeeded", run["error"]
    final = mesh.get(f"/training/runs/{run['id']}/checkpoints")["data"][0]

    def served() -> bool:
        versions = mesh.get("/versions?model=plain")["data"]
        return any(v["checkpoint"] == final["name"] and v["status"] == "serving" for v in versions)

    mesh.until(served, "the last checkpoint is served", 180)
    return "plain"


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty conversations about small sums."""
    path = tmp_path_factory.mktemp("examples") / "sums.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} + {n}?"},
                {"role": "assistant", "content": f"It is {2 * n}."},
            ]
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def tuned(mesh: Mesh, model: str, examples: Path) -> FineTuningJob:
    """A fine-tuning job that ran to its end, asked for as OpenAI's guide does."""
    client = mesh.openai
    with examples.open("rb") as stream:
        file = client.files.create(file=stream, purpose="fine-tune")
    assert file.bytes == examples.stat().st_size
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=file.id,
        suffix="sums",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        seed=1,
    )
    assert job.status in ("validating_files", "queued", "running")

    def ended() -> FineTuningJob | None:
        found = client.fine_tuning.jobs.retrieve(job.id)
        return found if found.status in ("succeeded", "failed", "cancelled") else None

    found = mesh.until(ended, "the fine-tuning job ends", 240)
    assert found.status == "succeeded", found.error
    return found
