"""A search for settings on a real Triton, while the model that serves goes on answering."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from millrace_registry.domain import Serving
from millrace_registry.repository import trial_name
from millrace_registry.tuning.report import report_of
from millrace_registry.tuning.resource import ServingTuning, State
from millrace_runtime.leases import LeaseLost
from millrace_testkit.servers import wait_until
from tests.engine import searches as of_searches
from tests.engine.searches import Searches
from tests.engine.served import MODEL, ServedEngine, is_installed
from tests.engine.tiny_model import TinyModel

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]


@pytest.fixture
def where(engine: ServedEngine, tiny: TinyModel, tmp_path: Path) -> list[str]:
    """A database, and where candidates are loaded from and of what."""
    url = f"sqlite:///{tmp_path}/service.db"
    return [url, engine.address, str(engine.repository_folder), str(tiny.artifact)]


@pytest.fixture
def searches(engine: ServedEngine, where: list[str]) -> Iterator[Searches]:
    url, address, repository, artifact = where
    made = Searches(url, address, Path(repository), Path(artifact))
    made.deployments.make()
    yield made
    made.database.close()
    assert not is_loaded(engine)
    assert not (engine.repository_folder / trial_name(MODEL)).exists()


def is_loaded(engine: ServedEngine) -> bool:
    with triton.InferenceServerClient(engine.address) as client:
        return bool(client.is_model_ready(trial_name(MODEL)))


def test_settings_are_measured_beside_the_model_that_serves_and_kept_over_a_kill(
    engine: ServedEngine, searches: Searches, where: list[str]
) -> None:
    """What a killed registry was trying stays on Triton, until the next one goes on."""
    made = searches.create()

    def is_amid_the_second_look() -> bool:
        found = searches.get(made)
        return len(found.trials) == 1 and found.progress.phase != "loading"

    with subprocess.Popen([sys.executable, "-m", of_searches.__name__, *where]) as victim:
        wait_until(is_amid_the_second_look, 120, "a second look")
        os.kill(victim.pid, signal.SIGKILL)
    assert is_loaded(engine)
    (first,) = searches.get(made).trials
    searches.store.on_trial = lambda trial: check_answers(engine)
    searches.work(threading.Event())
    ended = searches.get(made)
    assert ended.state == State.SUCCEEDED, ended.failure
    assert ended.trials[0] == first
    kinds = [trial.look_kind.value for trial in ended.trials]
    assert kinds[:3] == ["PRESENT", "CANDIDATE", "CONTROL"]
    assert all(trial.state != "FAILED" for trial in ended.trials), ended.trials
    present = first.figures
    assert (present.single_stream_first_token_seconds_p90 or 0) > 0
    rate, ceiling = present.server_requests_per_second, present.offline_requests_per_second
    assert 0 < (rate or 0) <= (ceiling or 0)
    check_result(ended, searches.deployments.deployment("default", "deployment-1").serving)


def check_answers(engine: ServedEngine) -> None:
    assert engine.ask("import ", max_tokens=2).token_count == 2


def check_result(ended: ServingTuning, serving: Serving) -> None:
    """Whichever it is on this machine: the winner is served, or plainly none."""
    assert ended.result is not None
    assert ended.result.is_written == ended.result.is_better
    said = report_of(ended).conclusion
    if ended.result.is_written:
        assert serving == ended.trials[ended.result.winner].serving
        assert "Written to deployment-1." in said
    else:
        assert serving == Serving()
        assert said.startswith("No winner: the present settings stay.")


def test_one_that_is_cancelled_ends_amid_a_look(engine: ServedEngine, searches: Searches) -> None:
    made = searches.create()
    searches.store.on_progress = lambda: searches.app.cancel("default", made.id)
    with pytest.raises(LeaseLost):
        searches.work(threading.Event())
    ended = searches.get(made)
    assert (ended.state, ended.trials) == (State.CANCELLED, ())
    check_answers(engine)
