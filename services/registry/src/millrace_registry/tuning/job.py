"""The search itself, in a process of its own, so that what is measured is not the registry.

It reads one JSON object (``Order``) from its standard input, which stays open: when it closes, the
search ends. It writes JSON lines: ``{"kind": "phase", "phase": str}``, ``{"kind": "trial", …}`` a
look that is taken (``trial.py``), ``{"kind": "result", …}`` last. The trial model is taken
out by whoever started it.
"""

import asyncio
import os
import sys
import threading
from dataclasses import asdict
from typing import Any

import tritonclient.grpc.aio as asynchronous

from millrace_registry.domain import Serving
from millrace_registry.repository import ModelRepository
from millrace_registry.triton import LoadFailed, Triton
from millrace_registry.tuning.decision import Decision, decide
from millrace_registry.tuning.load import AskFailed, Engine, Load, Shape
from millrace_registry.tuning.measure import Measurement
from millrace_registry.tuning.order import ORDER, Order
from millrace_registry.tuning.search import Search
from millrace_registry.tuning.space import Candidate, Space
from millrace_registry.tuning.trial import Kind, Trial
from millrace_registry.tuning.trial_model import TrialEngine, TrialModel
from millrace_runtime.jobs import Reporter


class TrialGone(Exception):
    """The model on trial is not there any more: Triton was restarted, and says nothing of it."""


class Tuning:
    """One search, from the first look to the decision."""

    def __init__(
        self,
        order: Order,
        model: TrialModel,
        engine: Engine,
        report: Reporter,
        measurement: Measurement | None = None,
    ) -> None:
        self._order = order
        self._model = model
        self._engine = engine
        self._report = report
        self._measurement = measurement or Measurement(order.target, order.seconds)
        self._shape = Shape(order.traffic).within(order.context_tokens)
        self._trials: list[Trial] = []
        self._done = {trial.number: trial for trial in order.done}
        self._measured_as_before()

    async def run(self) -> None:
        """Look at the present settings, at candidates, at the present ones again.

        The same scores lead to the same candidates: a search that goes on takes its way once more,
        over the looks that are done.
        """
        order = self._order
        search = Search(Space(order.limits), order.seed)
        present = await self._look(Kind.PRESENT, order.present, beat=0.0)
        search.tell(self._effective(order.present), present.score)
        best: Trial | None = None
        for _ in range(order.trials):
            candidate = search.next()
            if candidate is None:
                break
            beat = max(present.score, best.score if best else 0.0)
            tried = await self._look(Kind.CANDIDATE, self._serving(candidate), beat)
            search.tell(candidate, tried.score)
            if tried.score > beat:
                best = tried
        control = await self._look(Kind.CONTROL, order.present, beat=0.0)
        if best is None:
            self._end(present, present, decide(present.score, control.score, 0.0, 0.0))
            return
        again = await self._look(Kind.CONFIRMATION, best.serving, beat=0.0)
        decision = decide(present.score, control.score, best.score, again.score)
        self._end(present, best, decision)

    def _measured_as_before(self) -> None:
        """Ask as much offline as the first look of the search did."""
        for trial in self._order.done:
            if latency := trial.figures.single_stream_seconds_p90:
                self._measurement.expect(latency)

    async def _look(self, kind: Kind, serving: Serving, beat: float) -> Trial:
        trial = self._done.get(len(self._trials))
        if trial is None or not trial.is_of(kind, serving):
            trial = await self._measure(Trial(len(self._trials), kind, serving), beat)
            self._report.report("trial", **asdict(trial))
        self._trials.append(trial)
        return trial

    async def _measure(self, trial: Trial, beat: float) -> Trial:
        self._say("loading")
        try:
            trial.load_seconds = await asyncio.to_thread(self._model.load, trial.serving)
            load = Load(self._engine, self._shape, self._order.seed)
            look = await self._measurement.look(load, beat, self._say)
            trial.figures = look.figures
            trial.state, trial.reason = ("PRUNED" if look.pruned else "MEASURED"), look.pruned
        except (LoadFailed, AskFailed) as error:
            await self._require_model(error)
            trial.state, trial.reason = "FAILED", str(error)
        return trial

    async def _require_model(self, error: Exception) -> None:
        """
        Raises:
            TritonUnavailable, TrialGone: what failed says nothing of the settings.
        """
        is_there = await asyncio.to_thread(self._model.is_there)
        if isinstance(error, AskFailed) and not is_there:
            raise TrialGone(f"Triton was restarted amid a look: {error}") from error

    def _say(self, phase: str) -> None:
        self._report.report("phase", phase=phase)

    def _end(self, present: Trial, best: Trial, decision: Decision) -> None:
        winner = best if decision.is_better else present
        self._report.report("result", winner=winner.number, **asdict(decision), score=winner.score)

    def _effective(self, serving: Serving) -> Candidate:
        """The present settings, with what they leave open; they may be outside of the space."""
        engine = self._order.engine
        return Candidate(
            serving.instance_count or 1,
            serving.max_batch_size or engine.max_sequences,
            serving.threads or engine.threads or self._order.limits.threads,
            serving.cache_gibibytes or engine.cache_gibibytes,
        )

    def _serving(self, candidate: Candidate) -> Serving:
        return Serving(queue_policy=self._order.present.queue_policy, **asdict(candidate))


async def search(order: Order, report: Reporter) -> None:
    """Carry ``order`` out."""
    triton = Triton(order.address, order.control_key)
    repository = ModelRepository(order.repository, order.engine)
    model = TrialModel(triton, repository, order.model, order.artifact)
    async with asynchronous.InferenceServerClient(order.address) as client:
        engine = TrialEngine(client, model.name, order.vocabulary)
        await Tuning(order, model, engine, report).run()


def _end_with_the_input() -> None:
    def wait() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    order = ORDER.validate_json(sys.stdin.readline())
    _end_with_the_input()
    report: Any = Reporter(sys.stdout)
    try:
        asyncio.run(search(order, report))
    except Exception as error:  # whoever waits must hear of it
        report.report("error", message=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
