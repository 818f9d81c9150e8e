"""A rolling restart of every service, as after an upgrade, is noticed by no client."""

from millrace_mesh.layout import SERVICES
from tests.chaos import upgrades
from tests.chaos.upgrade_load import Load
from tests.chaos.upgrades import Restarts
from tests.e2e.lifecycle import Mesh


def test_no_request_fails_and_work_goes_on(mesh: Mesh, model: str, dataset: str) -> None:
    load, restarts = Load(mesh, model), Restarts()
    run = upgrades.start_work(mesh, "restarted", dataset)
    load.start()
    try:
        restarts.restart(mesh, SERVICES)
    finally:
        load.stop()
    found = upgrades.outcome(restarts, load)
    assert not found.violations, found
    assert found.runs == len(SERVICES)
    assert upgrades.unfinished(mesh, run) == []
