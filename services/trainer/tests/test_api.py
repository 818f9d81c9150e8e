from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from trainer_builders import CORPUS, DATASET, Parts, checkpoint_of

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.trainer.v1 import service_pb2 as pb
from millrace.trainer.v1 import service_pb2_grpc
from millrace_runtime.channel import call, open_channel
from millrace_runtime.database import open_database
from millrace_runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_testkit.clock import FakeClock
from millrace_trainer.api import TrainerServicer
from millrace_trainer.domain import Failure, Progress


@pytest.fixture
def parts(tmp_path: Path, clock: FakeClock) -> Iterator[Parts]:
    """On SQLite: what both databases do alike is asserted in test_store and test_app."""
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield Parts(database, tmp_path, clock)
    database.close()


@pytest.fixture
def stub(parts: Parts) -> Iterator[service_pb2_grpc.TrainerServiceStub]:
    """A client of a real server with the service's interceptor."""
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
    TrainerServicer(parts.app).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield service_pb2_grpc.TrainerServiceStub(channel)
    channel.close()
    server.stop(None).wait()


def asked(tenant: str = "acme", **fields: Any) -> pb.CreateRunRequest:
    given = {"parent": f"tenants/{tenant}", "model": "demo", "dataset": CORPUS, **fields}
    return pb.CreateRunRequest(**given)


def create(stub: service_pb2_grpc.TrainerServiceStub, **fields: Any) -> pb.Run:
    return call(stub.CreateRun, asked(**fields)).run


def test_what_was_not_given_is_answered_with_the_defaults(
    stub: service_pb2_grpc.TrainerServiceStub,
) -> None:
    run = create(stub, hyperparameters=pb.Hyperparameters(total_steps=7))
    assert run.name.startswith("tenants/acme/runs/run-")
    assert run.state == lifecycle_pb2.WORK_STATE_QUEUED
    assert (run.model, run.dataset) == ("demo", CORPUS)
    assert run.hyperparameters.total_steps == 7
    assert run.hyperparameters.batch_sequences == 16
    assert run.architecture.hidden_size == 256
    assert run.create_time.seconds > 0
    assert call(stub.GetRun, pb.GetRunRequest(name=run.name)).run == run


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"parent": "acme"}, "parent"),
        ({"parent": "tenants/-"}, "parent"),
        ({"model": "../x"}, "model"),
        ({"dataset": "dataset-1"}, "dataset"),
        ({"dataset": "tenants/acme/datasets/nothing"}, "dataset"),
        ({"dataset": "tenants/globex/datasets/dataset-1"}, "dataset"),
        (
            {"initial_checkpoint": "tenants/acme/runs/run-1/checkpoints/ckpt-1"},
            "initial_checkpoint",
        ),
        ({"hyperparameters": pb.Hyperparameters(learning_rate=2)}, "hyperparameters.learning_rate"),
        ({"hyperparameters": pb.Hyperparameters(processes=65)}, "hyperparameters.processes"),
        (
            {"hyperparameters": pb.Hyperparameters(batch_sequences=10, micro_batch_sequences=4)},
            "hyperparameters",
        ),
        ({"hyperparameters": pb.Hyperparameters(processes=3)}, "hyperparameters"),
        ({"architecture": pb.Architecture(hidden_size=256, attention_heads=5)}, "architecture"),
        ({"architecture": pb.Architecture(attention_heads=4, key_value_heads=3)}, "architecture"),
        ({"request_id": "r" * 129}, "request_id"),
    ],
)
def test_a_bad_run_names_the_field(
    stub: service_pb2_grpc.TrainerServiceStub, parts: Parts, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        create(stub, **fields)
    assert raised.value.field == field
    assert parts.store.page("-", "", 10) == []


def test_a_wrong_batch_says_what_would_be_right(stub: service_pb2_grpc.TrainerServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.CreateRun(asked(hyperparameters=pb.Hyperparameters(processes=3)))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == (
        "hyperparameters: batch_sequences must be a multiple of micro_batch_sequences times "
        "processes"
    )


def test_a_request_sent_twice_is_one_run(stub: service_pb2_grpc.TrainerServiceStub) -> None:
    first = create(stub, request_id="r1")
    assert create(stub, request_id="r1") == first
    with pytest.raises(AlreadyExists) as raised:
        create(stub, request_id="r1", model="other")
    assert raised.value.reason == "REQUEST_ID_REUSED"


def test_a_run_on_its_way_says_all_of_it(
    stub: service_pb2_grpc.TrainerServiceStub, parts: Parts
) -> None:
    name = create(stub).name
    lease = parts.store.claim()
    assert lease is not None
    stored = parts.store.start(lease)
    for step in (1, 2):
        progress = Progress("train", step, 300, {"loss": 5.0 / step})
        parts.store.record_progress(lease, progress)
    parts.store.add_checkpoint(lease, checkpoint_of(stored), 5_000_000)
    run = call(stub.GetRun, pb.GetRunRequest(name=name)).run
    assert run.state == lifecycle_pb2.WORK_STATE_RUNNING
    assert run.parameter_count == 5_000_000
    assert (run.progress.phase, run.progress.completed, run.progress.total) == ("train", 2, 300)
    listed = call(stub.ListRunMetrics, pb.ListRunMetricsRequest(parent=name, page_size=1))
    assert [(m.step, m.metrics["loss"]) for m in listed.metrics] == [(1, 5.0)]
    rest = pb.ListRunMetricsRequest(parent=name, page_token=listed.next_page_token)
    assert [m.step for m in call(stub.ListRunMetrics, rest).metrics] == [2]


def test_checkpoints_are_found_by_run_by_tenant_and_by_all(
    stub: service_pb2_grpc.TrainerServiceStub, parts: Parts
) -> None:
    run = create(stub)
    lease = parts.store.claim()
    assert lease is not None
    stored = parts.store.start(lease)
    parts.store.add_checkpoint(lease, checkpoint_of(stored, 100), 1)
    parts.store.add_checkpoint(lease, checkpoint_of(stored, 300, final=True), 1)
    for parent in (run.name, "tenants/acme/runs/-", "tenants/-/runs/-"):
        listed = call(stub.ListCheckpoints, pb.ListCheckpointsRequest(parent=parent))
        assert [checkpoint.step for checkpoint in listed.checkpoints] == [300, 100]
    newest = listed.checkpoints[0]
    assert newest.final
    assert newest.evaluation.digest == newest.dataset_digest == DATASET.digest
    assert newest.heldout_loss == 2.75
    request = pb.GetCheckpointRequest(name=newest.name)
    assert call(stub.GetCheckpoint, request).checkpoint == newest
    others = pb.ListCheckpointsRequest(parent="tenants/globex/runs/-")
    assert not call(stub.ListCheckpoints, others).checkpoints


def test_runs_are_listed_for_one_tenant_or_for_all(
    stub: service_pb2_grpc.TrainerServiceStub, parts: Parts
) -> None:
    theirs_dataset = "tenants/globex/datasets/dataset-1"
    parts.datasets.known[theirs_dataset] = DATASET
    mine = create(stub)
    theirs = create(stub, parent="tenants/globex", dataset=theirs_dataset)
    for parent, expected in (
        ("tenants/acme", [mine]),
        ("tenants/globex", [theirs]),
        ("tenants/-", [theirs, mine]),
    ):
        assert list(call(stub.ListRuns, pb.ListRunsRequest(parent=parent)).runs) == expected


def test_pause_resume_cancel(stub: service_pb2_grpc.TrainerServiceStub) -> None:
    name = create(stub).name
    steps = (
        (stub.PauseRun, pb.PauseRunRequest, lifecycle_pb2.WORK_STATE_PAUSED),
        (stub.ResumeRun, pb.ResumeRunRequest, lifecycle_pb2.WORK_STATE_QUEUED),
        (stub.CancelRun, pb.CancelRunRequest, lifecycle_pb2.WORK_STATE_CANCELLED),
    )
    for method, request, state in steps:
        assert call(method, request(name=name)).run.state == state
    for method, request, _ in steps[:2]:
        with pytest.raises(FailedPrecondition) as raised:
            call(method, request(name=name))
        assert raised.value.reason == "RUN_ENDED"


def test_a_run_that_failed_says_why(
    stub: service_pb2_grpc.TrainerServiceStub, parts: Parts
) -> None:
    name = create(stub).name
    lease = parts.store.claim()
    assert lease is not None
    parts.store.fail(lease, Failure("TRAINING_DIVERGED", "the loss is nan"))
    run = call(stub.GetRun, pb.GetRunRequest(name=name)).run
    assert run.state == lifecycle_pb2.WORK_STATE_FAILED
    assert (run.failure.reason, run.failure.message) == ("TRAINING_DIVERGED", "the loss is nan")


def test_what_is_not_there(stub: service_pb2_grpc.TrainerServiceStub) -> None:
    run, checkpoint = "tenants/acme/runs/run-1", "tenants/acme/runs/run-1/checkpoints/ckpt-1"
    for method, request in (
        (stub.GetRun, pb.GetRunRequest(name=run)),
        (stub.CancelRun, pb.CancelRunRequest(name=run)),
        (stub.PauseRun, pb.PauseRunRequest(name=run)),
        (stub.ResumeRun, pb.ResumeRunRequest(name=run)),
        (stub.ListRunMetrics, pb.ListRunMetricsRequest(parent=run)),
        (stub.ListCheckpoints, pb.ListCheckpointsRequest(parent=run)),
        (stub.GetCheckpoint, pb.GetCheckpointRequest(name=checkpoint)),
    ):
        with pytest.raises(NotFound):
            call(method, request)
