"""The search itself, in a process of its own, so that what is measured is not the registry.

It reads one JSON object (``Order``) from its standard input, which stays open: when it closes, the
search ends. It writes JSON lines: ``{"kind": "phase", "phase": str}``, ``{"kind": "trial", …}`` a
look (``service.proto``: ServingTrial), ``{"kind": "result", …}`` last. The trial model is taken
out by whoever started it.
"""

import asyncio
import os
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

import tritonclient.grpc.aio as asynchronous

from millrace_registry.domain import Serving
from millrace_registry.repository import ModelRepository
from millrace_registry.triton import LoadFailed, Triton
from millrace_registry.tuning.load import AskFailed, Load, Shape
from millrace_registry.tuning.measure import Figures, Look, Measurement
from millrace_registry.tuning.order import ORDER, Order
from millrace_registry.tuning.search import Decision, Search, decide
from millrace_registry.tuning.space import Candidate, Space
from millrace_registry.tuning.trial_model import TrialEngine, TrialModel
from millrace_runtime.jobs import Reporter


@dataclass
class Trial:
    """One look; ``reason``: why it failed or was given up."""

    number: int
    look_kind: str
    serving: Serving
    state: str = "MEASURED"
    reason: str = ""
    load_seconds: float = 0.0
    figures: Figures = field(default_factory=Figures)

    @property
    def score(self) -> float:
        return Look(self.figures).score if self.state == "MEASURED" else 0.0


class Tuning:
    """One search, from the first look to the decision."""

    def __init__(self, order: Order, model: TrialModel, engine: TrialEngine, report: Reporter):
        self._order = order
        self._model = model
        self._engine = engine
        self._report = report
        self._measurement = Measurement(order.target, order.seconds)
        self._shape = Shape(order.traffic).within(order.context_tokens)
        self._trials: list[Trial] = []

    async def run(self) -> None:
        """Look at the present settings, at candidates, at the present ones again."""
        order = self._order
        search = Search(Space(order.limits), order.seed)
        present = await self._look("PRESENT", order.present, beat=0.0)
        search.tell(self._effective(order.present), present.score)
        best: Trial | None = None
        for _ in range(order.trials):
            candidate = search.next()
            if candidate is None:
                break
            beat = max(present.score, best.score if best else 0.0)
            tried = await self._look("CANDIDATE", self._serving(candidate), beat)
            search.tell(candidate, tried.score)
            if tried.score > beat:
                best = tried
        if best is None:
            self._end(present, present, decide(present.score, present.score, 0.0, 0.0))
            return
        control = await self._look("CONTROL", order.present, beat=0.0)
        again = await self._look("CONFIRMATION", best.serving, beat=0.0)
        decision = decide(present.score, control.score, best.score, again.score)
        self._end(present, best, decision)

    async def _look(self, kind: str, serving: Serving, beat: float) -> Trial:
        trial = Trial(len(self._trials), kind, serving)
        self._trials.append(trial)
        self._say("loading")
        try:
            trial.load_seconds = await asyncio.to_thread(self._model.load, serving)
            load = Load(self._engine, self._shape, self._order.seed)
            look = await self._measurement.look(load, beat, self._say)
            trial.figures = look.figures
            trial.state, trial.reason = ("PRUNED" if look.pruned else "MEASURED"), look.pruned
        except (LoadFailed, AskFailed) as error:
            trial.state, trial.reason = "FAILED", str(error)
        self._report.report("trial", **asdict(trial))
        return trial

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
