"""Use cases: runs from the wish for one to its end, and what others may ask about them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol, TypeVar

from prometheus_client import Gauge
from pydantic import BaseModel, ValidationError

from millrace_runtime import names, paging, telemetry
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from millrace_trainer.domain import (
    Checkpoint,
    Content,
    Failure,
    Metric,
    RequestKey,
    Run,
    State,
    utc_now,
)
from millrace_trainer.jobs.specification import Architecture, Hyperparameters

_COUNT = Gauge("millrace_training_work_count", "Training runs, by state.", ["state"])

Resource = TypeVar("Resource", Run, Checkpoint)
Settings = TypeVar("Settings", bound=BaseModel)


class Runs(Protocol):
    """Rows of runs (``store.RunStore``)."""

    def made_by(self, tenant: str, request: RequestKey) -> Run | None: ...
    def add(self, run: Run, request: RequestKey) -> Run: ...
    def get(self, tenant: str, id: str) -> Run | None: ...
    def page(self, tenant: str, before_id: str, count: int) -> list[Run]: ...
    def get_checkpoint(self, tenant: str, run_id: str, id: str) -> Checkpoint | None: ...
    def checkpoint_page(
        self, tenant: str, run_id: str, before_id: str, count: int
    ) -> list[Checkpoint]: ...
    def metric_page(self, run_id: str, after_step: int, count: int) -> list[Metric]: ...
    def count_by_state(self) -> dict[str, int]: ...
    def waiting_datasets(self) -> list[str]: ...
    def dataset_ready(self, dataset_name: str, dataset: Content) -> None: ...
    def dataset_failed(self, dataset_name: str, failure: Failure) -> None: ...
    def cancel(self, tenant: str, id: str) -> Run | None: ...
    def pause(self, tenant: str, id: str) -> Run | None: ...
    def resume(self, tenant: str, id: str) -> Run | None: ...


class Datasets(Protocol):
    """The data service."""

    def find(self, name: str) -> "Content | Failure | None":
        """A dataset's content, why it failed, or None while it is being built.

        Raises:
            NotFound: there is none of that name.
            MillraceError: the data service does not answer.
        """
        ...


class TrainerApp:
    """``ring`` publishes facts; ``ring_workers`` wakes the workers. Both only speed things up."""

    def __init__(
        self,
        runs: Runs,
        datasets: Datasets,
        *,
        ring: Callable[[], None],
        ring_workers: Callable[[], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._runs = runs
        self._datasets = datasets
        self._ring = ring
        self._ring_workers = ring_workers
        self._now = now

    def create(
        self,
        tenant: str,
        model: str,
        dataset_name: str,
        initial_checkpoint: str,
        architecture: Mapping[str, int],
        hyperparameters: Mapping[str, float | int],
        request: RequestKey,
    ) -> Run:
        """Ask for a run; it waits for its dataset where that is not ready yet.

        A run that continues a checkpoint has the architecture of the run that made it.

        Raises:
            InvalidArgument: naming the field that is wrong.
            AlreadyExists: the request id was used for another request.
        """
        if made := self._runs.made_by(tenant, request):
            return made
        now = self._now()
        run = Run(
            tenant=tenant,
            id=names.new_id("run"),
            model=model,
            dataset_name=dataset_name,
            initial_checkpoint=initial_checkpoint,
            architecture=self._architecture(tenant, initial_checkpoint, architecture),
            hyperparameters=_complete(Hyperparameters, "hyperparameters", hyperparameters),
            dataset=self._dataset_of(tenant, dataset_name),
            create_time=now,
            update_time=now,
            traceparent=telemetry.current_traceparent(),
        )
        run = self._runs.add(run, request)
        self._ring_workers()
        return run

    def _dataset_of(self, tenant: str, name: str) -> Content | None:
        if names.tenant_of(name) != tenant:
            raise InvalidArgument(f"there is no dataset {name}", field="dataset")
        try:
            found = self._datasets.find(name)
        except NotFound as error:
            raise InvalidArgument(
                f"there is no dataset {names.last_id(name)}; create it first", field="dataset"
            ) from error
        if isinstance(found, Failure):
            raise InvalidArgument(
                f"the dataset has failed ({found.reason}): {found.message}", field="dataset"
            )
        return found

    def _architecture(
        self, tenant: str, initial_checkpoint: str, wanted: Mapping[str, int]
    ) -> Mapping[str, int]:
        if not initial_checkpoint:
            return _complete(Architecture, "architecture", wanted)
        _, owner, _, run_id, _, id = initial_checkpoint.split("/")
        source = self._runs.get(tenant, run_id)
        is_there = self._runs.get_checkpoint(tenant, run_id, id) is not None
        if owner != tenant or source is None or not is_there:
            raise InvalidArgument(
                f"there is no checkpoint {initial_checkpoint}", field="initial_checkpoint"
            )
        for field, value in wanted.items():
            if value != source.architecture[field]:
                raise InvalidArgument(
                    f"architecture.{field}: the initial checkpoint's is "
                    f"{source.architecture[field]}; leave it out, or start from random weights",
                    field=f"architecture.{field}",
                )
        return source.architecture

    def get(self, tenant: str, id: str) -> Run:
        """
        Raises:
            NotFound
        """
        return _found(self._runs.get(tenant, id), id)

    def page(self, tenant: str, page_size: int, page_token: str) -> tuple[list[Run], str]:
        """Runs, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        return _next_page(self._runs.page(tenant, before, count + 1), count)

    def get_checkpoint(self, tenant: str, run_id: str, id: str) -> Checkpoint:
        """
        Raises:
            NotFound
        """
        found = self._runs.get_checkpoint(tenant, run_id, id)
        if found is None:
            raise NotFound(f"there is no checkpoint {id} of run {run_id}")
        return found

    def checkpoint_page(
        self, tenant: str, run_id: str, page_size: int, page_token: str
    ) -> tuple[list[Checkpoint], str]:
        """
        Raises:
            NotFound: there is no such run.
        """
        if "-" not in (tenant, run_id):
            self.get(tenant, run_id)
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        return _next_page(self._runs.checkpoint_page(tenant, run_id, before, count + 1), count)

    def metric_page(
        self, tenant: str, run_id: str, page_size: int, page_token: str
    ) -> tuple[list[Metric], str]:
        """A run's measurements, oldest first.

        Raises:
            NotFound: there is no such run.
        """
        self.get(tenant, run_id)
        count = paging.page_size(page_size)
        after = paging.decode_token(page_token)
        if after and not after.isdecimal():
            raise InvalidArgument("page_token is not one of this list's", field="page_token")
        found = self._runs.metric_page(run_id, int(after or -1), count + 1)
        token = paging.encode_token(str(found[count - 1].step)) if len(found) > count else ""
        return found[:count], token

    def cancel(self, tenant: str, id: str) -> Run:
        """Stop a run for good; cancelling twice is once.

        Raises:
            NotFound
            FailedPrecondition: it has succeeded or failed already.
        """
        run = _found(self._runs.cancel(tenant, id), id)
        self._ring()
        return _require(run, State.CANCELLED, "cancelled")

    def pause(self, tenant: str, id: str) -> Run:
        """Stop a run; ``resume`` takes it up from its newest checkpoint.

        Raises:
            NotFound
            FailedPrecondition: it has ended.
        """
        return _require(_found(self._runs.pause(tenant, id), id), State.PAUSED, "paused")

    def resume(self, tenant: str, id: str) -> Run:
        """Let a paused run go on; one that works already is left alone.

        Raises:
            NotFound
            FailedPrecondition: it has ended.
        """
        run = _found(self._runs.resume(tenant, id), id)
        if run.state.is_final:
            raise FailedPrecondition(
                f"run {id} has {run.state} already and cannot be resumed", reason="RUN_ENDED"
            )
        self._ring_workers()
        return run

    def dataset_ready(self, name: str, content: Content) -> None:
        """A dataset that runs may wait for is there."""
        self._runs.dataset_ready(name, content)
        self._ring_workers()

    def dataset_failed(self, name: str, failure: Failure) -> None:
        """A dataset that runs may wait for will never be there."""
        message = f"its dataset failed ({failure.reason}): {failure.message}"
        self._runs.dataset_failed(name, Failure("DATASET_FAILED", message))
        self._ring()

    def reconcile(self) -> None:
        """Ask about the datasets that runs wait for; count the runs."""
        counts = self._runs.count_by_state()
        for state in State:
            _COUNT.labels(state.value).set(counts.get(state.value, 0))
        for name in self._runs.waiting_datasets():
            try:
                found = self._datasets.find(name)
            except NotFound as error:
                found = Failure("DATASET_NOT_FOUND", str(error))
            if isinstance(found, Content):
                self.dataset_ready(name, found)
            elif isinstance(found, Failure):
                self.dataset_failed(name, found)


def _complete(kind: type[Settings], field: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, with the defaults for the rest.

    Raises:
        InvalidArgument: the values do not go together; it names the field.
    """
    try:
        return kind(**given).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([field, *map(str, first["loc"])])
        text = first["msg"].removeprefix("Value error, ")
        raise InvalidArgument(f"{path}: {text}", field=path) from error


def _found(run: Run | None, id: str) -> Run:
    if run is None:
        raise NotFound(f"there is no run {id}")
    return run


def _require(run: Run, state: State, done: str) -> Run:
    if run.state != state:
        raise FailedPrecondition(
            f"run {run.id} has {run.state} already and cannot be {done}", reason="RUN_ENDED"
        )
    return run


def _next_page(found: list[Resource], count: int) -> tuple[list[Resource], str]:
    """Of one resource more than fits the page: the page, and the token of the next."""
    page = found[:count]
    return page, paging.encode_token(page[-1].id) if len(found) > count else ""
