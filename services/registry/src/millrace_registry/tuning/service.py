"""The registry's part of a search: who may begin one, and what is written at the end."""

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from millrace_registry.domain import (
    Deployment,
    Model,
    QueuePolicy,
    Serving,
    Version,
    triton_model_name,
)
from millrace_registry.repository import ModelRepository, read_interface
from millrace_registry.triton import Triton
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.order import Order
from millrace_registry.tuning.process import News, Run, run_job
from millrace_registry.tuning.resource import (
    Failure,
    Plan,
    Progress,
    Result,
    ServingTuning,
)
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.trial import Kind, Trial, trial_of
from millrace_registry.tuning.trial_model import TrialModel
from millrace_runtime import telemetry
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.errors import FailedPrecondition, NotFound
from millrace_runtime.leases import Lease
from millrace_runtime.manifest import ManifestError

LOG = logging.getLogger(__name__)

MAXIMUM_ATTEMPTS = 6
_DEFAULT_TRAFFIC = ((64, 32),)
_MEMORY_SHARE = 0.25
_LARGEST_BATCH = 256
_MOST_INSTANCES = 4
_ATTEMPTS = 5
_ATTEMPT_SECONDS = 0.1
_TURN = timedelta(seconds=2)
_FIRST_WAIT = timedelta(seconds=2)  # then twice that, and so on: a minute in all


class Deployments(Protocol):
    """What is asked of the catalogue (``app.RegistryApp``)."""

    def deployment(self, tenant: str, id: str) -> Deployment: ...
    def model(self, tenant: str, id: str) -> Model: ...
    def version(self, tenant: str, model: str, number: int) -> Version: ...


class Tunings(Protocol):
    """Fenced writes to the rows of searches (``store.TuningStore``)."""

    def take_up(self, lease: Lease) -> ServingTuning: ...
    def start(self, lease: Lease, plan: Plan) -> ServingTuning: ...
    def record_progress(self, lease: Lease, progress: Progress) -> None: ...
    def record_trial(self, lease: Lease, trial: Trial, progress: Progress) -> None: ...
    def count_attempt(self, lease: Lease) -> int: ...
    def put_off(
        self, lease: Lease, wait: timedelta, progress: Progress, failure: Failure | None = None
    ) -> None: ...
    def succeed(self, lease: Lease, result: Result, serving: Serving | None) -> ServingTuning: ...
    def fail(self, lease: Lease, failure: Failure) -> None: ...


@dataclass(frozen=True)
class Endpoint:
    """The Triton that candidates are loaded on, and the folders that it loads from."""

    address: str
    control_key: str | None
    repository: Path
    engine: EngineSettings


class ServingTuner:
    """``perform`` is what the worker does for each search that it claims.

    Nothing that serves is changed for a trial. What a search leaves behind that was killed is a
    model that no route leads to, and the controller takes it out.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        deployments: Deployments,
        tunings: Tunings,
        content: ContentStore,
        *,
        ring_controller: Callable[[], None],
        run: Run | None = None,
    ) -> None:
        """``run``: carries an order out, in place of the job (``process.run_job``)."""
        self._run = run or run_job
        self._endpoint = endpoint
        self._deployments = deployments
        self._tunings = tunings
        self._content = content
        self._ring_controller = ring_controller

    def perform(self, lease: Lease, stop: threading.Event) -> None:
        """Search, from where it was broken off, until it has ended or ``stop`` is set.

        Raises:
            LeaseLost: it was taken over or cancelled meanwhile.
        """
        tuning = self._tunings.take_up(lease)
        attributes: dict[str, str | int | float | bool] = {
            "millrace.serving_tuning": tuning.name,
            "millrace.epoch": lease.epoch,
        }
        with (
            telemetry.span(
                "registry tune-serving", traceparent=tuning.traceparent, attributes=attributes
            ),
            self._alone() as is_alone,
        ):
            if not is_alone:
                waits = progress_of(tuning, "waits: another search is under way on this endpoint")
                self._tunings.put_off(lease, _TURN, waits)
                return
            try:
                plan = tuning.plan or self._plan(tuning)
                order = self._order(tuning, plan)
            except (FailedPrecondition, NotFound) as error:
                self._tunings.fail(lease, Failure(error.reason, str(error)))
                return
            self._search(lease, self._tunings.start(lease, plan), order, stop)

    def _search(
        self, lease: Lease, tuning: ServingTuning, order: Order, stop: threading.Event
    ) -> None:
        model = TrialModel(self._triton(), self._repository(), order.model, order.artifact)
        with contextlib.closing(self._run(order, stop, model)) as told:
            for news in told:
                if news["kind"] == "phase":
                    self._tunings.record_progress(lease, progress_of(tuning, news["phase"]))
                elif news["kind"] == "trial":
                    tuning = with_trial(tuning, trial_of(news))
                    shown = progress_of(tuning, tuning.progress.phase)
                    self._tunings.record_trial(lease, tuning.trials[-1], shown)
                elif news["kind"] == "result":
                    self._end(lease, tuning, news)
                    return
                elif news["kind"] == "error":
                    self._try_again(lease, tuning, news["message"])
                    return
        if not stop.is_set():
            self._try_again(lease, tuning, "its process ended without a word")

    def _try_again(self, lease: Lease, tuning: ServingTuning, message: str) -> None:
        """Triton may be away for a moment: what was measured stays, and the rest is tried again."""
        attempts = self._tunings.count_attempt(lease)
        failure = Failure("TUNING_FAILED", f"the search broke off: {message}")
        LOG.warning("%s: attempt %d: %s", tuning.name, attempts, failure.message)
        if attempts >= MAXIMUM_ATTEMPTS:
            self._tunings.fail(lease, failure)
            return
        waits = progress_of(tuning, "waits, to be tried again")
        self._tunings.put_off(lease, _FIRST_WAIT * 2 ** (attempts - 1), waits, failure)

    def _end(self, lease: Lease, tuning: ServingTuning, news: News) -> None:
        wish = tuning.wish
        policy = _queue_policy(wish.target, float(news["score"]))
        winner = next(trial for trial in tuning.trials if trial.number == news["winner"])
        serving = winner.serving
        if wish.with_queue and policy is not None:
            serving = replace(serving, queue_policy=policy)
        result = Result(
            winner=winner.number,
            is_better=news["is_better"],
            reason=news["reason"],
            noise=news["noise"],
            queue_policy=policy,
        )
        is_to_be_written = result.is_better and not wish.is_dry_run
        self._tunings.succeed(lease, result, serving if is_to_be_written else None)
        self._ring_controller()

    def _plan(self, tuning: ServingTuning) -> Plan:
        """
        Raises:
            NotFound
            FailedPrecondition: no version serves.
        """
        deployment = self._deployments.deployment(tuning.tenant, tuning.deployment)
        version = require_serving(self._deployments, deployment)
        limits = _limits(tuning.wish.limits, self._endpoint.engine)
        return Plan(version, deployment.serving, limits)

    def _order(self, tuning: ServingTuning, plan: Plan) -> Order:
        version = self._deployments.version(tuning.tenant, tuning.model, plan.version)
        try:
            artifact = self._content.directory(version.artifact.uri, version.artifact.digest)
            interface = version.interface or read_interface(artifact)
            shape = json.loads((artifact / "config.json").read_text())
        except (ManifestError, ContentOutsideRoot, OSError, ValueError, KeyError) as error:
            raise FailedPrecondition(
                f"the artifact of {version.name} cannot be read: {error}", reason="ARTIFACT"
            ) from error
        wish = tuning.wish
        return Order(
            address=self._endpoint.address,
            control_key=self._endpoint.control_key,
            repository=self._endpoint.repository,
            model=triton_model_name(tuning.tenant, tuning.model),
            artifact=artifact,
            present=plan.present,
            engine=self._endpoint.engine,
            vocabulary=int(shape["vocab_size"]),
            context_tokens=interface.context_length,
            traffic=wish.traffic or _DEFAULT_TRAFFIC,
            target=wish.target,
            limits=plan.limits,
            trials=wish.trials,
            seconds=wish.seconds,
            seed=wish.seed,
            done=tuning.trials,
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process searches on the endpoint, or begins to while this lasts: two
        at once would measure each other.

        The controller looks at the lock for a moment, so that it is tried several times.
        """
        for _ in range(_ATTEMPTS):
            with self._repository().trials() as is_first:
                if is_first:
                    yield True
                    return
            time.sleep(_ATTEMPT_SECONDS)
        yield False

    def _triton(self) -> Triton:
        return Triton(self._endpoint.address, self._endpoint.control_key)

    def _repository(self) -> ModelRepository:
        return ModelRepository(self._endpoint.repository, self._endpoint.engine)


def require_serving(deployments: Deployments, deployment: Deployment) -> int:
    """The version of a deployment's model that serves.

    Raises:
        NotFound
        FailedPrecondition: none does.
    """
    number = deployments.model(deployment.tenant, deployment.model).serving_version
    if not number:
        raise FailedPrecondition(
            f"no version of model {deployment.model!r} serves yet", reason="NOT_SERVING"
        )
    return number


def with_trial(tuning: ServingTuning, trial: Trial) -> ServingTuning:
    """The search with one look more, in place of what had its number and of what came after."""
    before = [done for done in tuning.trials if done.number < trial.number]
    return replace(tuning, trials=(*before, trial))


def progress_of(tuning: ServingTuning, phase: str) -> Progress:
    """How far a search has come: its looks, and what they found."""
    present = [t.score for t in tuning.trials if t.look_kind == Kind.PRESENT]
    found = [t.score for t in tuning.trials if t.look_kind == Kind.CANDIDATE]
    metrics = {
        name: max(scores)
        for name, scores in (
            ("present_requests_per_second", present),
            ("best_candidate_requests_per_second", found),
        )
        if scores
    }
    return Progress(phase, len(tuning.trials), tuning.wish.looks, metrics)


def _limits(wanted: Limits, engine: EngineSettings) -> Limits:
    """0: as far as it seems wise on this machine, which may not be Triton's own."""
    threads = wanted.threads or engine.threads or os.cpu_count() or 1
    bytes_of_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wise = max(1, int(bytes_of_memory * _MEMORY_SHARE / 2**30))
    return Limits(
        instance_count=wanted.instance_count or min(_MOST_INSTANCES, threads),
        threads=threads,
        cache_gibibytes=wanted.cache_gibibytes or wise,
        max_batch_size=wanted.max_batch_size or _LARGEST_BATCH,
    )


def _queue_policy(target: Target, requests_per_second: float) -> QueuePolicy | None:
    """Who waits longer than the target misses it; so many come meanwhile (Little's law)."""
    if requests_per_second <= 0:
        return None
    waiting = math.ceil(requests_per_second * target.first_token_seconds)
    return QueuePolicy(waiting, target.first_token_seconds)
