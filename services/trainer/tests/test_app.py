import pytest
from trainer_builders import CORPUS, DATASET, LATE, Parts, checkpoint_of

from millrace_runtime import telemetry
from millrace_runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
    Unavailable,
)
from millrace_trainer.domain import Content, Failure, Progress, RequestKey, State
from millrace_trainer.jobs.specification import Architecture, Hyperparameters

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_creating_queues_a_run_with_every_default_and_rings(parts: Parts) -> None:
    run = parts.create(hyperparameters={"total_steps": 7})
    assert run.state is State.QUEUED
    assert run.dataset == DATASET
    assert run.architecture == Architecture().model_dump()
    assert run.hyperparameters == {**Hyperparameters().model_dump(), "total_steps": 7}
    assert parts.app.get("acme", run.id) == run
    assert parts.rings == ["workers"]


def test_a_run_and_its_facts_stay_in_the_requests_trace(parts: Parts) -> None:
    telemetry.start_tracing("test")
    with telemetry.span("create", traceparent=TRACEPARENT):
        run = parts.create()
    parts.app.cancel("acme", run.id)
    ((_, traceparent, _),) = parts.facts()
    assert {run.traceparent.split("-")[1], traceparent.split("-")[1]} == {TRACEPARENT.split("-")[1]}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("tenants/acme/datasets/nothing", "there is no dataset nothing; create it first"),
        ("tenants/globex/datasets/dataset-1", "there is no dataset"),
    ],
)
def test_a_dataset_must_exist_and_be_ones_own(parts: Parts, dataset: str, words: str) -> None:
    parts.datasets.known["tenants/globex/datasets/dataset-1"] = DATASET
    with pytest.raises(InvalidArgument, match=words) as raised:
        parts.create(dataset)
    assert raised.value.field == "dataset"
    assert parts.store.page("-", "", 10) == []


def test_a_dataset_that_has_failed_says_why(parts: Parts) -> None:
    parts.datasets.known[CORPUS] = Failure("DATASET_TOO_SMALL", "one document")
    with pytest.raises(InvalidArgument, match=r"failed \(DATASET_TOO_SMALL\): one document"):
        parts.create()


@pytest.mark.parametrize(
    ("architecture", "hyperparameters", "field"),
    [
        ({"hidden_size": 256, "attention_heads": 5}, {}, "architecture"),
        ({"attention_heads": 4, "key_value_heads": 3}, {}, "architecture"),
        ({"hidden_size": 4}, {}, "architecture.hidden_size"),
        ({}, {"batch_sequences": 10, "micro_batch_sequences": 4}, "hyperparameters"),
        ({}, {"batch_sequences": 8, "micro_batch_sequences": 8, "processes": 2}, "hyperparameters"),
        ({}, {"learning_rate": 2.0}, "hyperparameters.learning_rate"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    parts: Parts,
    architecture: dict[str, int],
    hyperparameters: dict[str, float | int],
    field: str,
) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: ") as raised:
        parts.create(architecture=architecture, hyperparameters=hyperparameters)
    assert raised.value.field == field
    assert parts.store.page("-", "", 10) == []


def test_a_run_continues_a_checkpoint_of_its_own_tenant(parts: Parts) -> None:
    first = parts.create()
    lease = parts.store.claim()
    assert lease is not None
    checkpoint = checkpoint_of(first)
    parts.store.add_checkpoint(lease, checkpoint, 1)
    assert parts.create(initial_checkpoint=checkpoint.name).initial_checkpoint == checkpoint.name
    for name in (checkpoint.name + "0", checkpoint.name.replace("acme", "globex")):
        with pytest.raises(InvalidArgument, match="there is no checkpoint") as raised:
            parts.create(initial_checkpoint=name)
        assert raised.value.field == "initial_checkpoint"


def test_a_run_that_continues_a_checkpoint_has_its_architecture(parts: Parts) -> None:
    first = parts.create(architecture={"layers": 3, "context_length": 64})
    lease = parts.store.claim()
    assert lease is not None
    checkpoint = checkpoint_of(first)
    parts.store.add_checkpoint(lease, checkpoint, 1)
    unsaid = parts.create(initial_checkpoint=checkpoint.name)
    said = parts.create(initial_checkpoint=checkpoint.name, architecture={"layers": 3})
    assert unsaid.architecture == said.architecture == first.architecture
    with pytest.raises(InvalidArgument, match=r"the initial checkpoint's is 3") as raised:
        parts.create(initial_checkpoint=checkpoint.name, architecture={"layers": 4})
    assert raised.value.field == "architecture.layers"


def test_a_request_sent_again_has_the_same_answer_whatever_became_of_its_dataset(
    parts: Parts,
) -> None:
    first = parts.create(request=RequestKey("r1", "sha256:1"))
    parts.datasets.known[CORPUS] = Failure("DATASET_TOO_SMALL", "one document")
    assert parts.create(request=RequestKey("r1", "sha256:1")) == first
    with pytest.raises(AlreadyExists):
        parts.create(request=RequestKey("r1", "sha256:2"))


def test_a_dataset_that_is_gone_fails_its_run_and_keeps_no_other_waiting(parts: Parts) -> None:
    parts.datasets.known["tenants/acme/datasets/dataset-0"] = None
    gone, waits = parts.create(LATE), parts.create("tenants/acme/datasets/dataset-0")
    del parts.datasets.known[LATE]
    parts.datasets.known["tenants/acme/datasets/dataset-0"] = DATASET
    parts.app.reconcile()
    failed = parts.now(gone)
    assert failed.failure is not None
    assert failed.failure.reason == "DATASET_FAILED"
    assert "DATASET_NOT_FOUND" in failed.failure.message
    assert parts.now(waits).dataset == DATASET


def test_a_run_waits_for_its_dataset(parts: Parts) -> None:
    run = parts.create(LATE)
    ready = Content("file:///data/datasets/late", "sha256:" + "cd" * 32, 5)
    parts.app.dataset_ready(LATE, ready)
    assert parts.now(run).dataset == ready
    assert parts.rings == ["workers", "workers"]


def test_a_dataset_that_fails_later_fails_the_run(parts: Parts) -> None:
    run = parts.create(LATE)
    parts.app.dataset_failed(LATE, Failure("DATASET_TOO_SMALL", "one document"))
    failed = parts.now(run)
    assert failed.state is State.FAILED
    assert failed.failure == Failure(
        "DATASET_FAILED", "its dataset failed (DATASET_TOO_SMALL): one document"
    )
    ((subject, _, data),) = parts.facts()
    assert subject == "millrace.acme.trainer.run.failed"
    assert data["failure"]["reason"] == "DATASET_FAILED"
    assert parts.rings == ["workers", "relay"]


@pytest.mark.parametrize(
    ("settled", "state"),
    [
        (DATASET, State.QUEUED),
        (Failure("DATASET_TOO_SMALL", "one document"), State.FAILED),
        (None, State.QUEUED),
    ],
)
def test_the_reconciler_asks_about_datasets_whose_fact_was_missed(
    parts: Parts, settled: Content | Failure | None, state: State
) -> None:
    run = parts.create(LATE)
    parts.datasets.known[LATE] = settled
    parts.app.reconcile()
    assert parts.now(run).state is state
    assert (parts.store.claim() is not None) == isinstance(settled, Content)


def test_a_data_service_that_is_away_leaves_runs_waiting(parts: Parts) -> None:
    run = parts.create(LATE)

    def away(name: str) -> None:
        raise Unavailable("the data service does not answer", reason="UNAVAILABLE")

    parts.datasets.find = away  # type: ignore[method-assign]
    with pytest.raises(MillraceError):
        parts.app.reconcile()
    with pytest.raises(Unavailable):
        parts.create()
    assert parts.now(run) == run


def test_cancelling_says_so_once(parts: Parts) -> None:
    run = parts.create()
    assert parts.app.cancel("acme", run.id).state is State.CANCELLED
    assert parts.app.cancel("acme", run.id).state is State.CANCELLED
    ((subject, _, data),) = parts.facts()
    assert subject == "millrace.acme.trainer.run.cancelled"
    assert data == {"run": run.name, "model": "demo"}


def test_pausing_and_resuming(parts: Parts) -> None:
    run = parts.create()
    assert parts.app.pause("acme", run.id).state is State.PAUSED
    assert parts.app.pause("acme", run.id).state is State.PAUSED
    assert parts.store.claim() is None
    assert parts.app.resume("acme", run.id).state is State.QUEUED
    lease = parts.store.claim()
    assert lease is not None
    parts.store.start(lease)
    assert parts.app.resume("acme", run.id).state is State.RUNNING
    parts.store.renew(lease)
    assert parts.app.pause("acme", run.id).state is State.PAUSED
    assert parts.app.cancel("acme", run.id).state is State.CANCELLED


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_what_has_ended_is_over(parts: Parts, action: str) -> None:
    run = parts.create()
    lease = parts.store.claim()
    assert lease is not None
    parts.store.succeed(lease)
    with pytest.raises(FailedPrecondition, match="has SUCCEEDED already") as raised:
        getattr(parts.app, action)("acme", run.id)
    assert raised.value.reason == "RUN_ENDED"


def test_another_tenants_run_is_not_found(parts: Parts) -> None:
    run = parts.create()
    app = parts.app
    for attempt in (app.get, app.cancel, app.pause, app.resume):
        with pytest.raises(NotFound):
            attempt("globex", run.id)
    for page in (app.checkpoint_page, app.metric_page):
        with pytest.raises(NotFound):
            page("globex", run.id, 0, "")
    with pytest.raises(NotFound):
        app.get_checkpoint("globex", run.id, "ckpt-1")
    assert app.page("globex", 0, "") == ([], "")
    assert app.page("-", 0, "") == ([run], "")
    assert parts.now(run) == run


def test_pages_cover_everything(parts: Parts) -> None:
    runs = [parts.create() for _ in range(5)]
    lease = parts.store.claim()
    assert lease is not None
    for step in range(1, 6):
        parts.store.add_checkpoint(lease, checkpoint_of(runs[0], step), 1)
        parts.store.record_progress(lease, Progress("train", step, 5, {"loss": 1.0 / step}))
    app, first = parts.app, runs[0].id
    for pages, expected in (
        (lambda token: app.page("acme", 2, token), sorted((r.id for r in runs), reverse=True)),
        (lambda token: app.checkpoint_page("acme", first, 2, token), [5, 4, 3, 2, 1]),
        (lambda token: app.metric_page("acme", first, 2, token), [1, 2, 3, 4, 5]),
    ):
        found, token = [], ""
        for _ in range(3):
            page, token = pages(token)
            found += [getattr(resource, "step", None) or resource.id for resource in page]
        assert token == ""
        assert found == expected


def test_a_page_token_of_another_list_is_refused(parts: Parts) -> None:
    runs = [parts.create() for _ in range(2)]
    _, token = parts.app.page("acme", 1, "")
    with pytest.raises(InvalidArgument) as raised:
        parts.app.metric_page("acme", runs[0].id, 1, token)
    assert raised.value.field == "page_token"
