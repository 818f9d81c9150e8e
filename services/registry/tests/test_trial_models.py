"""Models on trial: left alone while somebody tries them, taken out when nobody does."""

from pathlib import Path

import pytest
from registry_builders import FakeTriton

from millrace_registry.guarded import GuardedRepository, GuardedTriton
from millrace_registry.repository import ModelRepository, trial_name
from millrace_registry.taking_out import take_out
from millrace_registry.triton_config import EngineSettings

MODEL = "default.demo"


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    made = ModelRepository(tmp_path, EngineSettings())
    for name in (MODEL, trial_name(MODEL)):
        (tmp_path / name).mkdir()
        made.list_versions(name, [1])
    return made


def clean(repository: ModelRepository, tmp_path: Path) -> None:
    take_out(
        GuardedTriton(FakeTriton(tmp_path), lambda: None),
        GuardedRepository(repository, lambda: None),
        {MODEL: [1]},
        {},
    )


def test_a_model_on_trial_stays_while_it_is_tried(
    repository: ModelRepository, tmp_path: Path
) -> None:
    with repository.trials() as is_first:
        assert is_first
        assert repository.is_on_trial(trial_name(MODEL))
        assert not repository.is_on_trial(MODEL)
        clean(repository, tmp_path)
    assert set(repository.models()) == {MODEL, trial_name(MODEL)}


def test_one_that_was_left_behind_goes(repository: ModelRepository, tmp_path: Path) -> None:
    assert not repository.is_on_trial(trial_name(MODEL))
    clean(repository, tmp_path)
    assert repository.models() == [MODEL]


def test_one_tries_at_a_time(repository: ModelRepository, tmp_path: Path) -> None:
    with (
        repository.trials() as is_first,
        ModelRepository(tmp_path, EngineSettings()).trials() as second,
    ):
        assert (is_first, second) == (True, False)
    with repository.trials() as again:
        assert again
