"""The registry's part of a search: who may begin one, its process, what is written at the end."""

import contextlib
import json
import logging
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from millrace_registry.domain import (
    Deployment,
    Model,
    QueuePolicy,
    Serving,
    Version,
    triton_model_name,
)
from millrace_registry.repository import ModelRepository, read_interface
from millrace_registry.triton import Triton, TritonUnavailable
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.order import ORDER, Order
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.trial_model import TrialModel
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.errors import Aborted, FailedPrecondition, ResourceExhausted
from millrace_runtime.manifest import ManifestError

LOG = logging.getLogger(__name__)

_DEFAULT_TRAFFIC = ((64, 32),)
_MEMORY_SHARE = 0.25
_LARGEST_BATCH = 256
_MOST_INSTANCES = 4
_END_SECONDS = 10.0
_ATTEMPTS = 5
_ATTEMPT_SECONDS = 0.1
_LOOK_SECONDS = 0.2
_WHAT_THERE_IS = Limits(0, 0, 0, 0)
_SERVING: TypeAdapter[Serving] = TypeAdapter(Serving)

News = Mapping[str, Any]
Run = Callable[[Order, threading.Event, threading.Event, TrialModel], Iterator[News]]


class Deployments(Protocol):
    """What is asked of the catalogue (``app.RegistryApp``)."""

    def deployment(self, tenant: str, id: str) -> Deployment: ...
    def model(self, tenant: str, id: str) -> Model: ...
    def version(self, tenant: str, model: str, number: int) -> Version: ...
    def update_deployment(
        self, wanted: Deployment, expected_revision: int | None
    ) -> Deployment: ...


@dataclass(frozen=True)
class Wish:
    """What is to be searched; in ``limits`` 0 stands for what the machine has."""

    target: Target
    traffic: tuple[tuple[int, int], ...] = ()
    trials: int = 8
    seconds: float = 4.0
    seed: int = 0
    limits: Limits = field(default=_WHAT_THERE_IS)
    is_dry_run: bool = False
    with_queue: bool = False


@dataclass(frozen=True)
class Endpoint:
    """The Triton that candidates are loaded on, and the folders that it loads from."""

    address: str
    control_key: str | None
    repository: Path
    engine: EngineSettings


class ServingTuner:
    """Begins searches, one at a time for an endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        deployments: Deployments,
        content: ContentStore,
        draining: threading.Event,
        run: Run | None = None,
    ) -> None:
        """``run``: carries an order out, in place of the job (``run_job``)."""
        self._run = run or run_job
        self._endpoint = endpoint
        self._deployments = deployments
        self._content = content
        self._draining = draining

    def tune(self, tenant: str, id: str, wish: Wish, left: threading.Event) -> Iterator[News]:
        """What the job says (``job.py``); at the end ``{"kind": "result", …, "deployment"}``.

        Args:
            left: set when nobody reads any longer; the search ends, and nothing is written.

        Raises:
            NotFound
            FailedPrecondition: no version serves, or the search broke off.
            ResourceExhausted: another search is under way.
        """
        deployment = self._deployments.deployment(tenant, id)
        order = self._order(deployment, wish)
        with self._alone():
            model = TrialModel(self._triton(), self._repository(), order.model, order.artifact)
            trials: dict[int, News] = {}
            for news in self._run(order, left, self._draining, model):
                if news["kind"] == "trial":
                    trials[news["number"]] = news
                if news["kind"] == "error":
                    raise FailedPrecondition(
                        f"the search broke off: {news['message']}", reason="TUNING_FAILED"
                    )
                if news["kind"] != "result":
                    yield news
                    continue
                yield self._ended(deployment, wish, news, trials[news["winner"]])

    def _order(self, deployment: Deployment, wish: Wish) -> Order:
        version = self._serving(deployment)
        try:
            artifact = self._content.directory(version.artifact.uri, version.artifact.digest)
            interface = version.interface or read_interface(artifact)
            shape = json.loads((artifact / "config.json").read_text())
        except (ManifestError, ContentOutsideRoot, OSError, ValueError, KeyError) as error:
            raise FailedPrecondition(
                f"the artifact of {version.name} cannot be read: {error}", reason="ARTIFACT"
            ) from error
        return Order(
            address=self._endpoint.address,
            control_key=self._endpoint.control_key,
            repository=self._endpoint.repository,
            model=triton_model_name(deployment.tenant, deployment.model),
            artifact=artifact,
            present=deployment.serving,
            engine=self._endpoint.engine,
            vocabulary=int(shape["vocab_size"]),
            context_tokens=interface.context_length,
            traffic=wish.traffic or _DEFAULT_TRAFFIC,
            target=wish.target,
            limits=_limits(wish.limits, self._endpoint.engine),
            trials=wish.trials,
            seconds=wish.seconds,
            seed=wish.seed,
        )

    def _serving(self, deployment: Deployment) -> Version:
        number = self._deployments.model(deployment.tenant, deployment.model).serving_version
        if not number:
            raise FailedPrecondition(
                f"no version of model {deployment.model!r} serves yet", reason="NOT_SERVING"
            )
        return self._deployments.version(deployment.tenant, deployment.model, number)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The controller looks at the lock for a moment, so that it is tried several times."""
        for _ in range(_ATTEMPTS):
            with self._repository().trials() as is_first:
                if is_first:
                    yield
                    return
            time.sleep(_ATTEMPT_SECONDS)
        raise ResourceExhausted(
            "settings are being searched for on this endpoint already; two at once would measure "
            "each other",
            reason="TUNING_UNDER_WAY",
        )

    def _ended(self, before: Deployment, wish: Wish, news: News, winner: News) -> News:
        policy = _queue_policy(wish.target, float(news["score"]))
        serving = _SERVING.validate_python(winner["serving"])
        if wish.with_queue and policy is not None and news["is_better"]:
            serving = replace(serving, queue_policy=policy)
        ended = {**news, "queue_policy": policy, "is_written": False, "deployment": before}
        if wish.is_dry_run or not news["is_better"]:
            return ended
        try:
            wanted = replace(before, serving=serving)
            after = self._deployments.update_deployment(wanted, before.revision)
        except Aborted:
            now = self._deployments.deployment(before.tenant, before.id)
            reason = f"{news['reason']}; not written: the deployment was changed meanwhile"
            return {**ended, "reason": reason, "deployment": now}
        return {**ended, "is_written": True, "deployment": after}

    def _triton(self) -> Triton:
        return Triton(self._endpoint.address, self._endpoint.control_key)

    def _repository(self) -> ModelRepository:
        return ModelRepository(self._endpoint.repository, self._endpoint.engine)


def run_job(
    order: Order, left: threading.Event, draining: threading.Event, model: TrialModel
) -> Iterator[News]:
    """The job's lines; it is ended, and its model taken out, when this generator is closed."""
    command = [sys.executable, "-m", "millrace_registry.tuning.job"]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdin is not None
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(job, lines), daemon=True).start()
    try:
        job.stdin.write(ORDER.dump_json(order) + b"\n")
        job.stdin.flush()
        while not left.is_set():
            if draining.is_set():
                raise ResourceExhausted("the registry restarts; try again", reason="RESTARTING")
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=_LOOK_SECONDS)
                if not line:
                    return
                yield json.loads(line)
    finally:
        _end(job, model)


def _read(job: "subprocess.Popen[bytes]", lines: "queue.Queue[bytes]") -> None:
    assert job.stdout is not None
    for line in job.stdout:
        lines.put(line)
    status = job.wait()
    if status < 0:
        lines.put(json.dumps({"kind": "error", "message": f"signal {-status}"}).encode())
    lines.put(b"")


def _end(job: "subprocess.Popen[bytes]", model: TrialModel) -> None:
    assert job.stdin is not None
    with contextlib.suppress(OSError):
        job.stdin.close()
    try:
        job.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
    try:
        model.unload()
    except TritonUnavailable as error:
        LOG.warning("the model on trial is left to the controller: %s", error)


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
