"""A search that was broken off takes the way that it would have taken, over what was measured."""

import asyncio
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from millrace_registry.domain import Serving
from millrace_registry.triton import TritonUnavailable
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.job import TrialGone, Tuning
from millrace_registry.tuning.load import AskFailed, Load, Target
from millrace_registry.tuning.measure import Figures, Look, Measurement
from millrace_registry.tuning.order import ORDER, Order
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.trial import Trial, trial_of
from millrace_runtime.jobs import Reporter

PRESENT = Serving(instance_count=1, max_batch_size=4, threads=1, cache_gibibytes=1)
ORDER_OF_ALL = Order(
    address="nowhere:1",
    control_key=None,
    repository=Path("nowhere"),
    model="acme.demo",
    artifact=Path("nowhere"),
    present=PRESENT,
    engine=EngineSettings(),
    vocabulary=500,
    context_tokens=128,
    traffic=((8, 8),),
    target=Target(1.0, 0.1),
    limits=Limits(2, 4, 2, 64),
    trials=6,
    seconds=1.0,
    seed=3,
)


class PlayedModel:
    """Remembers what it was loaded with; ``there`` says whether Triton still has it."""

    def __init__(self) -> None:
        self.loaded: list[Serving] = []
        self.there: Callable[[], bool] = lambda: True

    def load(self, serving: Serving) -> float:
        self.loaded.append(serving)
        return 0.1

    def is_there(self) -> bool:
        return self.there()


class PlayedMeasurement(Measurement):
    """What answers is known from the settings alone: larger batches answer more."""

    def __init__(self, model: PlayedModel) -> None:
        super().__init__(ORDER_OF_ALL.target, ORDER_OF_ALL.seconds)
        self._model = model
        self.fails: Callable[[], object] = lambda: None

    async def look(self, load: Load, beat: float, say: Callable[[str], None]) -> Look:
        self.fails()
        rate = float(self._model.loaded[-1].max_batch_size or 0)
        pruned = "less than the best in time" if rate <= beat else ""
        return Look(Figures(single_stream_seconds_p90=0.5, server_requests_per_second=rate), pruned)


class Played:
    """One run of a search: what it loaded, what it said."""

    def __init__(self, done: tuple[Trial, ...] = ()) -> None:
        self.model = PlayedModel()
        self.measurement = PlayedMeasurement(self.model)
        self._stream = io.StringIO()
        self._order = ORDER.validate_json(ORDER.dump_json(replace(ORDER_OF_ALL, done=done)))

    def run(self) -> None:
        model: Any = self.model
        engine: Any = None
        tuning = Tuning(self._order, model, engine, Reporter(self._stream), self.measurement)
        asyncio.run(tuning.run())

    def said(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["kind"] == kind]

    @property
    def trials(self) -> list[Trial]:
        return [trial_of(line) for line in self.said("trial")]


def run(done: tuple[Trial, ...] = ()) -> Played:
    played = Played(done)
    played.run()
    return played


@pytest.mark.parametrize("known", [0, 1, 4, 7, 9])
def test_it_goes_on_as_if_nothing_had_happened(known: int) -> None:
    whole = run()
    assert len(whole.trials) == ORDER_OF_ALL.trials + 3
    resumed = run(tuple(whole.trials[:known]))
    assert resumed.trials == whole.trials[known:]
    assert resumed.model.loaded == [trial.serving for trial in whole.trials[known:]]
    assert resumed.said("result") == whole.said("result")
    (result,) = resumed.said("result")
    assert result["is_better"]
    assert result["score"] > PRESENT.max_batch_size


def test_looks_that_it_would_not_have_taken_are_taken_anew() -> None:
    """As after an update of the program that proposes others."""
    whole = run()
    strange = replace(whole.trials[2], serving=replace(PRESENT, max_batch_size=999))
    resumed = run((*whole.trials[:2], strange))
    assert resumed.trials == whole.trials[2:]


def test_offline_runs_ask_as_much_as_before() -> None:
    whole = run()
    resumed = Played(tuple(whole.trials[:1]))
    resumed.run()
    assert resumed.measurement._offline_count == 16  # 8 at once for a second, half a second each


def test_settings_that_break_are_a_failed_look() -> None:
    played = Played()

    def breaks() -> None:
        if len(played.model.loaded) == 2:
            raise AskFailed("no memory")

    played.measurement.fails = breaks
    played.run()
    assert [(t.state, t.reason) for t in played.trials[1:2]] == [("FAILED", "no memory")]
    assert played.said("result")


def gone() -> bool:
    raise TritonUnavailable("nobody listens")


@pytest.mark.parametrize(
    ("there", "error"), [(lambda: False, TrialGone), (gone, TritonUnavailable)]
)
def test_a_triton_that_went_away_says_nothing_of_the_settings(
    there: Callable[[], bool], error: type[Exception]
) -> None:
    played = Played()
    played.model.there = there

    def breaks() -> None:
        raise AskFailed("the connection was lost")

    played.measurement.fails = breaks
    with pytest.raises(error):
        played.run()
    assert played.trials == []
