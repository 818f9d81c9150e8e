"""Runs and their metrics, as the trainer and the tuner tell them to MLflow, a tenant's own alone.

MLflow's own store reads and writes them. It is imported when somebody first asks, in a thread. An
experiment is called ``<tenant>/<name>`` in the store (``millrace_runtime.tracking``) and ``<name>``
here, and where a run's artifacts lie is the store's business: clients are sent to the gateway.
"""

import threading
from typing import Any

from millrace_runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
    Unavailable,
)
from millrace_runtime.tracking import artifact_root

_PAGE = 1000

Answer = dict[str, Any]


class Tracking:
    """MLflow's store behind tenants. Its methods block: call them in a thread."""

    def __init__(self, uri: str | None, data_root: str) -> None:
        """``data_root``: where artifacts lie when neither MLflow nor its database says."""
        self._uri = uri
        self._data_root = data_root
        self._lock = threading.Lock()
        self._store: Any = None

    def open(self) -> None:
        """Import MLflow and connect, the first time.

        Raises:
            FailedPrecondition: this mesh tracks nothing.
            Unavailable: the store does not answer.
        """
        if self._uri is None:
            raise FailedPrecondition(
                "this mesh tracks no runs; its operator sets MILLRACE_GATEWAY_MLFLOW_TRACKING_URI, "
                "as the trainer's and the tuner's",
                reason="NO_TRACKING",
            )
        with self._lock:
            if self._store is not None:
                return
            from mlflow.tracking._tracking_service.utils import _get_store

            try:
                root = artifact_root(self._uri) or f"{self._data_root}/mlflow-artifacts"
                self._store = _get_store(self._uri, root)  # type: ignore[no-untyped-call]
            except Exception as error:  # whatever a database's driver raises
                raise Unavailable(
                    "MLflow's store does not answer; tell the operator", reason="TRACKING_AWAY"
                ) from error

    def repository(self, run: Any) -> Any:
        """MLflow's ``ArtifactRepository`` of a run."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(run.info.artifact_uri, tracking_uri=self._uri)

    @property
    def store(self) -> Any:
        return self._store

    def experiment(self, tenant: str, id: str) -> Any:
        """MLflow's ``Experiment``, as it is in the store.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        found = self._store.get_experiment(id) if id.isascii() and id.isdecimal() else None
        if found is None or not found.name.startswith(f"{tenant}/"):
            raise NotFound(f"No Experiment with id={id} exists")
        return found

    def run(self, tenant: str, id: str) -> Any:
        """MLflow's ``Run``.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        found = self._store.get_run(id)
        try:
            self.experiment(tenant, found.info.experiment_id)
        except NotFound:
            raise NotFound(f"Run with id={id} not found") from None
        return found

    def experiments(self, tenant: str, view_type: int) -> list[Any]:
        """All of the tenant's, called as the tenant calls them."""
        found: list[Any] = []
        token = None
        while True:
            page = self._store.search_experiments(
                view_type, _PAGE, f"name LIKE '{tenant}/%'", None, token
            )
            found += [shown(one) for one in page if one.name.startswith(f"{tenant}/")]
            token = page.token
            if not token:
                return found


def shown(experiment: Any) -> Any:
    """An experiment as its tenant sees it."""
    from mlflow.entities import Experiment, ExperimentTag

    return Experiment(
        experiment.experiment_id,
        experiment.name.partition("/")[2],
        f"mlflow-artifacts:/experiments/{experiment.experiment_id}",
        experiment.lifecycle_stage,
        creation_time=experiment.creation_time,
        last_update_time=experiment.last_update_time,
        tags=[ExperimentTag(key, value) for key, value in experiment.tags.items()],
    )


def meaning(error: Any) -> MillraceError:
    """What an ``MlflowException`` of the store says to a client."""
    code, message = error.error_code, str(error.message)
    if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
        return NotFound(message)
    if code == "RESOURCE_ALREADY_EXISTS":
        return AlreadyExists(message, reason="ALREADY_EXISTS")
    if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE"):
        return InvalidArgument(message)
    return Unavailable("MLflow's store does not answer; tell the operator", reason="TRACKING_AWAY")
