"""A run's parameters and metrics in MLflow, when its user has a tracking server.

Tracking observes: a server that is away costs the run its plots, never its life. Calls are
made from a thread of their own, metrics in batches, and the first failure ends tracking.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

_BATCH_SECONDS = 2.0
_MAXIMUM_BATCH = 500  # MLflow refuses more than 1,000 metrics a call
_CLOSE_SECONDS = 15.0

_SQLITE = "sqlite:///"


def tracked_experiment(tenant: str, name: str) -> str:
    """What a tenant's experiment is called in MLflow: every tenant has names of its own."""
    return f"{tenant}/{name}"


def artifact_root(uri: str) -> str | None:
    """Where artifacts lie when MLflow's database is a file: beside it. None: as MLflow says."""
    if not uri.startswith(_SQLITE):
        return None
    return str(Path(uri.removeprefix(_SQLITE)).absolute().parent / "mlflow-artifacts")


Point = tuple[str, float, int, int]  # key, value, step, milliseconds since the epoch


@dataclass(frozen=True)
class _File:
    """One to be kept with the run, and in which folder."""

    path: Path
    folder: str


@dataclass(frozen=True)
class _Run:
    """What MLflow is told of a run."""

    job: str
    experiment: str
    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Any]


class Tracking:
    """Sends what it is given to one MLflow run, found again by its tag after a restart.

    Args:
        job: what the run is found again by.
        experiment: MLflow's, made where there is none.
        name: of the run; empty: ``job``.
        tags: of the run; empty ones are left out.
    """

    def __init__(
        self,
        uri: str,
        job: str,
        experiment: str,
        parameters: dict[str, Any],
        *,
        name: str = "",
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._points: queue.Queue[Point | _File | None] = queue.Queue()
        given = {key: value for key, value in tags.items() if value}
        arguments = (uri, _Run(job, experiment, name or job, given, parameters))
        self._thread = threading.Thread(target=self._send, args=arguments, daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        for key, value in metrics.items():
            self._points.put((key, value, step, now))

    def log_file(self, path: Path, folder: str) -> None:
        """Keep a copy of a file with the run, in a folder of its artifacts."""
        self._points.put(_File(path, folder))

    def close(self) -> None:
        """Send what is left, for 15 seconds at most."""
        self._points.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _send(self, uri: str, run: _Run) -> None:
        try:
            self._send_to(uri, run)
        except Exception as error:  # whatever a tracking server does must not reach the run
            print(f"tracking at MLflow ends: {type(error).__name__}: {error}", file=sys.stderr)

    def _send_to(self, uri: str, run: _Run) -> None:
        # MLflow reads these when it is imported; its defaults retry for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.entities import Metric, RunStatus
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        run_id = _find_or_create_run(client, uri, run)
        while found := self._next_batch():
            points = [point for point in found if not isinstance(point, _File)]
            metrics = [Metric(key, value, now, step) for key, value, step, now in points]
            if metrics:
                client.log_batch(run_id, metrics=metrics)
            for file in found:
                if isinstance(file, _File):
                    client.log_artifact(run_id, str(file.path), file.folder)
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))

    def _next_batch(self) -> list[Point | _File]:
        """What the next two seconds bring; empty once ``close`` was called."""
        deadline = time.monotonic() + _BATCH_SECONDS
        points: list[Point | _File] = []
        while len(points) < _MAXIMUM_BATCH:
            timeout = max(deadline - time.monotonic(), 0.0) if points else None
            try:
                point = self._points.get(timeout=timeout)
            except queue.Empty:
                break
            if point is None:
                self._points.put(None)
                break
            points.append(point)
        return points


def _find_or_create_experiment(client: Any, uri: str, name: str) -> str:
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    root = artifact_root(uri)
    location = None if root is None else f"{root}/{name.replace(':', '.')}"
    return str(client.create_experiment(name, location))


def _find_or_create_run(client: Any, uri: str, run: _Run) -> str:
    id = _find_or_create_experiment(client, uri, run.experiment)
    found = client.search_runs([id], filter_string=f"tags.`millrace.job` = '{run.job}'")
    if found:
        return str(found[0].info.run_id)
    tags = {**run.tags, "millrace.job": run.job}
    made = client.create_run(id, run_name=run.name, tags=tags)
    for key, value in run.parameters.items():
        client.log_param(made.info.run_id, key, value)
    return str(made.info.run_id)
