"""Recalls over REST, with the data service's rows and the registry's recalls as they are."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gateway_mesh import Mesh

from millrace_data.domain import FilePurpose
from millrace_data.row_api import RowServicer
from millrace_examples.row_hash import row_hash, spelled
from millrace_registry.domain import Deployment, LineageEdge, LineageNode, RequestKey
from millrace_registry.recall_api import RecallServicer
from millrace_registry.recall_app import RecallApp
from millrace_registry.recall_looks import RecallLooks
from millrace_registry.recall_watch import RecallWatch, RowsOfData
from millrace_registry.strategies import Immediate
from millrace_runtime.database import open_database
from millrace_testkit.clock import FakeClock

_SERVICES = Path(__file__).resolve().parents[2]
sys.path += [str(_SERVICES / stage / "tests") for stage in ("data", "registry")]
from data_builders import Parts, chat_jsonl, conversation  # noqa: E402
from registry_builders import World  # noqa: E402


@pytest.fixture
def parts(mesh: Mesh, tmp_path: Path, clock: FakeClock) -> Any:
    """The data service's parts, answering for rows."""
    database = open_database(f"sqlite:///{tmp_path}/data.db")
    made = Parts(database, tmp_path / "of-data", clock)
    mesh.data.rows.real = RowServicer(made.search)
    yield made
    database.close()


@pytest.fixture
def world(mesh: Mesh, tmp_path: Path, clock: FakeClock) -> Any:
    """The registry's parts, answering for recalls."""
    database = open_database(f"sqlite:///{tmp_path}/registry.db")
    made = World(database, tmp_path / "of-registry", clock)
    app = RecallApp(made.recalls, ring=lambda: None, ring_controller=lambda: None, now=clock)
    mesh.registry.recalls.real = RecallServicer(app)
    yield made
    database.close()


def serve(world: World, *files: str) -> None:
    """Versions of ``demo``, each tuned on its file, the last of which serves."""
    now = world.clock()
    deployment = Deployment("default", "d", "demo", now, now, strategy=Immediate())
    world.catalogue.add_deployment(deployment, RequestKey("", ""))
    for number, file in enumerate(files, start=1):
        checkpoint = f"tenants/default/runs/r/checkpoints/demo-{number}"
        job = f"tenants/default/jobs/{number}"
        nodes = [LineageNode(file, "file"), LineageNode(job, "job")]
        nodes.append(LineageNode(checkpoint, "checkpoint"))
        world.app.learn(nodes, [LineageEdge(file, job), LineageEdge(job, checkpoint)])
        world.finish(number, tenant="default")
        world.look(5)


class Answering:
    """A stub of the data service's rows."""

    def __init__(self, parts: Parts) -> None:
        self._servicer: Any = RowServicer(parts.search)

    def FindRows(self, request: Any, timeout: float) -> Any:
        return self._servicer.FindRows(request, None)


def uploaded(parts: Parts, content: bytes) -> Any:
    return parts.upload(content, "default", FilePurpose.FINE_TUNE, filename="rows.jsonl")


def test_one_call_takes_out_what_saw_a_row(mesh: Mesh, parts: Parts, world: World) -> None:
    bad = uploaded(parts, chat_jsonl(10))
    lines = chat_jsonl(30).splitlines(keepends=True)
    good = uploaded(parts, b"".join(lines[10:]))
    serve(world, good.name, bad.name)
    client = mesh.http()
    report = client.post("/v1/recalls", json={"rows": [conversation(3)]}).json()
    assert report["action"] == "report"
    (cause,) = report["causes"]
    assert (cause["id"], cause["row_count"], cause["held_out"]) == (bad.id, 1, False)
    assert cause["hashes"] == [spelled(row_hash(conversation(3)))]
    (version,) = report["versions"]
    assert (version["id"], version["live"], version["outcome"]) == ("demo@2", True, "reported")
    assert {"cause": f"files/{bad.id}", "effect": "jobs/2"} in report["edges"]

    body = {"hashes": cause["hashes"], "action": "quarantine", "reason": "asked by its author"}
    key = {"idempotency-key": "once"}
    made = client.post("/v1/recalls", json=body, headers=key).json()
    assert client.post("/v1/recalls", json=body, headers=key).json() == made
    (version,) = made["versions"]
    assert version["outcome"] == "quarantined"
    assert (version["status"], version["live"], version["successor"]) == ("quarantined", False, 1)
    assert client.get(f"/v1/recalls/{made['id']}").json() == made
    listed = client.get("/v1/recalls", params={"limit": 1}).json()
    assert ([each["id"] for each in listed["data"]], listed["has_more"]) == ([made["id"]], True)
    other = mesh.http(mesh.other_secret)
    assert other.get("/v1/recalls").json()["data"] == []

    again = uploaded(parts, b"".join(lines[2:12]))
    nodes = [LineageNode(again.name, "file"), LineageNode("tenants/default/jobs/3", "job")]
    nodes.append(LineageNode("tenants/default/runs/r/checkpoints/demo-3", "checkpoint"))
    edges = [LineageEdge(cause.name, effect.name) for cause, effect in pairwise(nodes)]
    world.app.learn(nodes, edges)
    world.finish(3, tenant="default")
    world.look(5)
    rows = RowsOfData(Answering(parts))
    RecallWatch(world.recalls, RecallLooks(world.database), rows, 1, ring=lambda: None).look()
    later = client.get(f"/v1/recalls/{made['id']}").json()
    assert [(each["id"], each["joined_at"] is None) for each in later["causes"]] == [
        (bad.id, True),
        (again.id, False),
    ]
    assert [each["status"] for each in later["versions"]] == ["quarantined"] * 2
    assert later["status"] == "standing"

    path = f"/v1/recalls/{made['id']}/lift"
    lifted = client.post(path, json={"reason": "he agrees"}).json()
    assert client.post(path).json() == lifted
    assert (lifted["status"], lifted["lift_reason"]) == ("lifted", "he agrees")
    assert [(each["status"], each["live"]) for each in lifted["versions"]] == [
        ("retired", False),
        ("retired", False),
    ]

    clean = client.post("/v1/recalls", json={"rows": ["never seen"]}).json()
    assert (clean["causes"], clean["versions"]) == ([], [])
    whole = client.post("/v1/recalls", json={"file": bad.id}).json()
    assert [each["row_count"] for each in whole["causes"]] == [10, 8]


def test_rows_have_hashes_that_anybody_can_compute(mesh: Mesh) -> None:
    row = {"b": 1.0, "a": ["ä"]}
    answer = mesh.http().post("/v1/row_hashes", json={"rows": [row, {"text": "x"}, "x"]}).json()
    assert answer["hashes"] == [spelled(row_hash(each)) for each in (row, "x", "x")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "rows"),
        ({"rows": [5]}, "rows[0]"),
        ({"rows": [""]}, "rows[0]"),
        ({"hashes": ["sha256:12"]}, "hashes[0]"),
        ({"hashes": [], "rows": ["a"] * 10_001}, "rows"),
        ({"rows": ["a"], "action": "delete"}, "action"),
        ({"rows": ["a"], "reason": "x" * 1025}, "reason"),
        ({"rows": ["a"], "depth": 1}, "depth"),
    ],
)
def test_what_is_no_recall_names_the_field(mesh: Mesh, body: dict[str, Any], field: str) -> None:
    answer = mesh.http().post("/v1/recalls", json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"] or "").startswith(field)
