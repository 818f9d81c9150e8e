"""The crash points themselves: that they are passed, and that a kill happens where it should."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import crash_points

ROOT = Path(__file__).parents[2]
WRITE = """
from pathlib import Path
import sys
from millrace_runtime import manifest
def save(target):
    temporary = manifest.temporary_sibling(target)
    (temporary / "weights").write_text("1")
    manifest.commit(temporary, target, "checkpoint", {})
save(Path(sys.argv[1]))
"""


def save(directory: Path, plan: dict[str, object]) -> int:
    """Commit a directory in a process that takes itself for the trainer; its exit status."""
    chaos = directory / "chaos"
    chaos.mkdir(exist_ok=True)
    (chaos / crash_points.PLAN).write_text(json.dumps(plan))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "tests/chaos/inject"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        ),
        crash_points.DIRECTORY_VARIABLE: str(chaos),
    }
    command = [sys.executable, "-c", WRITE, str(directory / "step-4"), "millrace_trainer"]
    return subprocess.run(command, env=environment, check=False, timeout=60).returncode


def points(directory: Path) -> list[str]:
    lines = (directory / "chaos" / crash_points.POINTS).read_text().splitlines()
    return [json.loads(line)["point"] for line in lines]


def test_a_process_passes_points_and_notes_them(tmp_path: Path) -> None:
    assert save(tmp_path, {"id": "1"}) == 0
    assert (tmp_path / "step-4" / "manifest.json").exists()
    passed = points(tmp_path)
    assert "trainer: runtime.manifest.commit rename before" in passed
    assert "trainer: runtime.manifest.commit.write_durably fsync after" in passed


@pytest.mark.parametrize(("side", "is_visible"), [("before", False), ("after", True)])
def test_the_kill_happens_at_the_planned_side_and_once(
    tmp_path: Path, side: str, is_visible: bool
) -> None:
    plan = {"id": "1", "point": f"trainer: runtime.manifest.commit rename {side}"}
    assert save(tmp_path, plan) == -signal.SIGKILL
    assert (tmp_path / "step-4").exists() == is_visible
    if not is_visible:
        assert save(tmp_path, plan) == 0
        assert (tmp_path / "step-4" / "manifest.json").exists()


def test_the_hit_is_counted(tmp_path: Path) -> None:
    point = "trainer: runtime.manifest.commit.fsync_path fsync before"
    assert save(tmp_path, {"id": "1", "point": point, "hit": 2}) == -signal.SIGKILL
    assert points(tmp_path).count(point) == 2


def test_processes_are_named_by_what_they_run() -> None:
    assert crash_points.process_of(["python", "-m", "millrace_trainer"]) == "trainer"
    job = ["python", "-m", "millrace_data.jobs.build_dataset", "spec.json"]
    assert crash_points.process_of(job) == "data.jobs.build_dataset"
    assert crash_points.process_of(["python", "-m", "millrace_mesh"]) == ""
    assert crash_points.process_of(["/usr/bin/nats-server"]) == ""
