"""What the service does, whoever asks: tuning jobs of tenants, and their road to serving."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from millrace_runtime import names, paging, telemetry
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from millrace_tuner import (
    adapter_rules,
    companions,
    hyperparameters,
    method_rules,
    prompt_rules,
    recovery,
    serving,
    steps,
    sweep_rules,
    tracking_rules,
)
from millrace_tuner.domain import (
    BaseVersion,
    Checkpoint,
    FileReference,
    Integration,
    Job,
    Outcome,
    Plan,
    RecordedEvent,
    RequestKey,
    Step,
    WrongState,
    utc_now,
)
from millrace_tuner.methods import Adapter, Hyperparameters, Method
from millrace_tuner.model_ids import new_model_id
from millrace_tuner.prompt import PromptWish
from millrace_tuner.recovery import Recovery
from millrace_tuner.serving import Scene
from millrace_tuner.sweep import Setting, Sweep

_SHOWN_MODELS = 10
_SEED_BITS = 32

Resource = TypeVar("Resource", Job, Checkpoint, RecordedEvent)


class Jobs(Protocol):
    """Rows of jobs, checkpoints and events (``store.JobStore``)."""

    def made_by(self, tenant: str, request: RequestKey) -> Job | None: ...
    def add(self, job: Job, request: RequestKey) -> Job: ...
    def get(self, tenant: str, id: str) -> Job | None: ...
    def page(
        self, tenant: str, before_id: str, count: int, metadata: Mapping[str, str] | None
    ) -> list[Job]: ...
    def awaiting_outcome(self) -> list[Job]: ...
    def change(self, tenant: str, id: str, step: Step) -> Job | None: ...
    def events(
        self, tenant: str, job: str, before: int | None, count: int
    ) -> list[RecordedEvent]: ...
    def event_sequence(self, job: str, id: str) -> int | None: ...
    def checkpoint(self, tenant: str, job: str, id: str) -> Checkpoint | None: ...
    def made_model(self, tenant: str, reference: str) -> Job | None: ...
    def final_checkpoint(self, job: str) -> Checkpoint | None: ...
    def checkpoints(
        self, tenant: str, job: str, before_id: str, count: int
    ) -> list[Checkpoint]: ...


class Files(prompt_rules.Prompts, Protocol):
    """The data service, as the tuner needs it (``neighbours.DataFiles``)."""

    def training_file(self, name: str, field: str) -> FileReference:
        """Raises InvalidArgument naming ``field``: there is none, or it is for something else."""
        ...

    def add_results(self, tenant: str, filename: str, content: bytes) -> str:
        """Store a result file, once however often it is asked for; return its name."""
        ...


class Models(Protocol):
    """The registry and the compressor, as the tuner needs them (``neighbours.Models``)."""

    def resolve(self, tenant: str, reference: str, field: str) -> BaseVersion:
        """Raises NotFound, and InvalidArgument naming ``field``."""
        ...

    def ids(self, tenant: str) -> Sequence[str]: ...

    def scene(self, tenant: str, model: str) -> Scene:
        """All there is of a tuned model outside the tuner."""
        ...


@dataclass(frozen=True)
class Wish:
    """A tuning job as its user asked for it; 0 and None mean "auto"."""

    base_model: str
    training_file: str
    validation_file: str = ""
    suffix: str = ""
    seed: int = 0
    method: Method = hyperparameters.DEFAULT_METHOD
    hyperparameters: Hyperparameters = hyperparameters.AUTO
    adapter: Adapter | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    sweep: Sweep | None = None
    integration: Integration | None = None
    prompt: PromptWish | None = None
    recovery: Recovery | None = None


class TunerApp:
    """Tuning jobs, from the wish for one to the model that serves."""

    def __init__(
        self,
        jobs: Jobs,
        files: Files,
        models: Models,
        *,
        ring_relay: Callable[[], None],
        ring_workers: Sequence[Callable[[], None]],
        is_tracking: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._jobs = jobs
        self._files = files
        self._models = models
        self._ring_relay = ring_relay
        self._ring_workers = ring_workers
        self._is_tracking = is_tracking
        self._now = now

    def create(self, tenant: str, wish: Wish, request: RequestKey) -> Job:
        """Make a job; it is QUEUED. The same request again gives the same job.

        Raises:
            InvalidArgument: naming the field: a model or file that is not there or not for this.
            AlreadyExists: the request id was used for another request.
            Unavailable: the data service or the registry does not answer.
        """
        made = self._jobs.made_by(tenant, request)
        if made is not None:
            return made
        plan = recovery.plan(tenant, wish) or self._plan(tenant, wish)
        now = self._now()
        job = Job(
            tenant=tenant,
            id=names.new_id("ftjob"),
            plan=plan,
            tuned_model=new_model_id(plan, tenant),
            create_time=now,
            update_time=now,
            metadata=wish.metadata,
            traceparent=telemetry.current_traceparent(),
        )
        job = self._jobs.add(job, request)
        self._ring()
        return job

    def _plan(self, tenant: str, wish: Wish) -> Plan:
        method_rules.require_sensible(wish.method)
        adapter_rules.require_meaningful(wish.adapter, wish.hyperparameters.gradient_checkpointing)
        method_rules.require_shardable(wish.method, wish.adapter, wish.hyperparameters.zero_stage)
        training = self._file(tenant, wish.training_file, "training_file")
        validation = None
        if wish.validation_file:
            validation = self._file(tenant, wish.validation_file, "validation_file")
        base = self._version(tenant, wish.base_model, "base_model")
        setting = Setting(
            hyperparameters.resolve_method(wish.method, base.model),
            hyperparameters.resolve(wish.method, training.example_count, wish.hyperparameters),
            hyperparameters.resolve_adapter(wish.adapter),
        )
        return Plan(
            base_model=wish.base_model,
            base=base,
            training_file=training,
            validation_file=validation,
            suffix=wish.suffix,
            seed=wish.seed % (1 << _SEED_BITS),
            method=setting.method,
            hyperparameters=setting.hyperparameters,
            adapter=setting.adapter,
            companion=companions.companion_of(self._jobs, self._version, tenant, wish.method),
            judges=companions.judges_of(self._models, tenant, wish.method),
            sweep=sweep_rules.resolve(wish.sweep, setting),
            integration=tracking_rules.allowed(wish.integration, self._is_tracking),
            prompt=prompt_rules.resolve(self._files, tenant, wish.prompt, wish.method),
        )

    def _file(self, tenant: str, name: str, field: str) -> FileReference:
        if names.tenant_of(name) != tenant or name.split("/")[2] == "compressions":
            raise InvalidArgument(
                f"there is no {names.last_id(name)}; upload it first",
                reason="FILE_NOT_FOUND",
                field=field,
            )
        return self._files.training_file(name, field)

    def _version(self, tenant: str, reference: str, field: str) -> BaseVersion:
        try:
            return self._models.resolve(tenant, reference, field)
        except NotFound:
            ids = self._models.ids(tenant)
            there = ", ".join(ids[:_SHOWN_MODELS]) or "no model yet"
            more = f" and {len(ids) - _SHOWN_MODELS} more" if len(ids) > _SHOWN_MODELS else ""
            raise InvalidArgument(
                f"there is no model {reference!r}; there is {there}{more}",
                reason="MODEL_NOT_FOUND",
                field=field,
            ) from None

    def get(self, tenant: str, id: str) -> Job:
        """
        Raises:
            NotFound
        """
        return _found(self._jobs.get(tenant, id), id)

    def page(
        self,
        tenant: str,
        page_size: int,
        page_token: str,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[list[Job], str]:
        """Jobs, newest first, and the token of the next page (empty: this is the last).

        Only those whose metadata hold ``metadata``; of an empty one, those that have none.
        """
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        return _page(self._jobs.page(tenant, before, count + 1, metadata), count)

    def cancel(self, tenant: str, id: str) -> Job:
        """
        Raises:
            NotFound
            FailedPrecondition: JOB_STATE, the job has ended otherwise.
        """
        return self._step(tenant, id, lambda job: steps.cancel(job, self._now()))

    def pause(self, tenant: str, id: str) -> Job:
        """
        Raises:
            NotFound
            FailedPrecondition: JOB_STATE, the job or its training has ended.
        """
        return self._step(tenant, id, lambda job: steps.pause(job, self._now()))

    def resume(self, tenant: str, id: str) -> Job:
        """
        Raises:
            NotFound
            FailedPrecondition: JOB_STATE, the job has ended.
        """
        return self._step(tenant, id, lambda job: steps.resume(job, self._now()))

    def _step(self, tenant: str, id: str, step: Step) -> Job:
        try:
            job = _found(self._jobs.change(tenant, id, step), id)
        except WrongState as error:
            raise FailedPrecondition(str(error), reason="JOB_STATE") from error
        self._ring()
        return job

    def events(
        self, tenant: str, id: str, page_size: int, page_token: str
    ) -> tuple[list[RecordedEvent], str]:
        """What happened to a job, newest first, and the token of the next page.

        Raises:
            NotFound
        """
        self.get(tenant, id)
        count = paging.page_size(page_size)
        found = self._jobs.events(tenant, id, self._sequence(id, page_token), count + 1)
        return _page(found, count)

    def _sequence(self, job: str, page_token: str) -> int | None:
        """Place in the job's history of the event that a token stands for.

        Raises:
            InvalidArgument: it stands for none.
        """
        event = paging.decode_token(page_token)
        sequence = self._jobs.event_sequence(job, event) if event else None
        if event and sequence is None:
            raise InvalidArgument(
                f"job {job} has no event {event!r} to list from; leave page_token out to start "
                "again",
                field="page_token",
            )
        return sequence

    def checkpoint(self, tenant: str, job: str, id: str) -> Checkpoint:
        """
        Raises:
            NotFound
        """
        checkpoint = self._jobs.checkpoint(tenant, job, id)
        if checkpoint is None:
            raise NotFound(f"job {job} has no checkpoint {id}")
        return checkpoint

    def checkpoints(
        self, tenant: str, job: str, page_size: int, page_token: str
    ) -> tuple[list[Checkpoint], str]:
        """Checkpoints of a job (``-``: of all), newest first, and the next page's token.

        Raises:
            NotFound: there is no such job.
        """
        if job != "-":
            self.get(tenant, job)
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        return _page(self._jobs.checkpoints(tenant, job, before, count + 1), count)

    def settled(self, tenant: str, job: str, checkpoint: str) -> None:
        """A version made from this checkpoint serves."""
        found = self._jobs.checkpoint(tenant, job, checkpoint)
        if found is not None and found.final:
            self._settle(tenant, job, Outcome())

    def follow(self, tenant: str, job: str, checkpoint: str) -> None:
        """A road of this checkpoint has ended badly: see whether another is open.

        Raises:
            Unavailable: the compressor or the registry does not answer.
        """
        found = self._jobs.checkpoint(tenant, job, checkpoint)
        if found is not None and found.final:
            self._derive(found)

    def reconcile(self) -> None:
        """Ask what became of every job that waits for its rollout."""
        for job in self._jobs.awaiting_outcome():
            final = self._jobs.final_checkpoint(job.id)
            if final is not None:
                with telemetry.span("tuner follow", traceparent=job.traceparent):
                    self._derive(final)

    def _derive(self, checkpoint: Checkpoint) -> None:
        scene = self._models.scene(checkpoint.tenant, checkpoint.model)
        outcome = serving.outcome_of(checkpoint.name, scene)
        if outcome is not None:
            self._settle(checkpoint.tenant, checkpoint.job, outcome)

    def _settle(self, tenant: str, job: str, outcome: Outcome) -> None:
        self._jobs.change(tenant, job, lambda job: steps.settle(job, outcome, self._now()))
        self._ring_relay()

    def _ring(self) -> None:
        self._ring_relay()
        for ring_worker in self._ring_workers:
            ring_worker()


def _found(job: Job | None, id: str) -> Job:
    if job is None:
        raise NotFound(f"there is no fine-tuning job {id}")
    return job


def _page(found: list[Resource], count: int) -> tuple[list[Resource], str]:
    """Of one resource more than fits the page: the page, and the token of the next."""
    page = found[:count]
    return page, paging.encode_token(page[-1].id) if len(found) > count else ""
