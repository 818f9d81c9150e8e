from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest
from tuner_parts import TRAINING_FILE, Parts

from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace.tuner.v1 import method_pb2 as method_pb
from millrace.tuner.v1 import service_pb2 as pb
from millrace.tuner.v1 import service_pb2_grpc
from millrace_runtime import paging
from millrace_runtime.channel import call, open_channel
from millrace_runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
)
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_tuner import convert
from millrace_tuner.api import TunerServicer
from millrace_tuner.rows import PLANS, plan_of


@pytest.fixture
def stub(parts: Parts) -> Iterator[service_pb2_grpc.TunerServiceStub]:
    """A client of a real server with the service's interceptor."""
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
    TunerServicer(parts.app).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield service_pb2_grpc.TunerServiceStub(channel)
    channel.close()
    server.stop(None).wait()


def supervised(**fields: Any) -> method_pb.Method:
    return method_pb.Method(supervised=method_pb.Supervised(), **fields)


def create(stub: service_pb2_grpc.TunerServiceStub, **fields: object) -> pb.Job:
    given = {
        "parent": "tenants/acme",
        "base_model": "demo",
        "training_file": TRAINING_FILE,
        **fields,
    }
    return call(stub.CreateJob, pb.CreateJobRequest(**given)).job  # type: ignore[arg-type]


def test_a_job_is_made_and_read_back(stub: service_pb2_grpc.TunerServiceStub) -> None:
    method = supervised(
        hyperparameters=method_pb.Hyperparameters(epochs=2), adapter=method_pb.Adapter(rank=4)
    )
    job = create(stub, suffix="docs", method=method, seed=7, metadata={"team": "a"})
    assert job.state == lifecycle.WORK_STATE_QUEUED
    assert job.base_version == "tenants/acme/models/demo/versions/7"
    assert job.method.WhichOneof("kind") == "supervised"
    assert job.method.hyperparameters.epochs == 2
    assert job.method.hyperparameters.batch_size == 8
    assert job.method.hyperparameters.learning_rate_multiplier == 1.0
    assert job.method.adapter.kind == "lora"
    assert (job.method.adapter.rank, job.method.adapter.alpha) == (4, 8.0)
    assert dict(job.metadata) == {"team": "a"}
    assert not job.HasField("finish_time")
    assert call(stub.GetJob, pb.GetJobRequest(name=job.name)).job == job
    listed = call(stub.ListJobs, pb.ListJobsRequest(parent="tenants/acme")).jobs
    assert list(listed) == [job]
    everywhere = call(stub.ListJobs, pb.ListJobsRequest(parent="tenants/-")).jobs
    assert list(everywhere) == [job]


def test_the_same_request_gives_the_same_job(stub: service_pb2_grpc.TunerServiceStub) -> None:
    assert create(stub, request_id="r1") == create(stub, request_id="r1")
    with pytest.raises(AlreadyExists):
        create(stub, request_id="r1", suffix="other")


@pytest.mark.parametrize(
    ("fields", "kind", "field"),
    [
        ({"base_model": "demp"}, InvalidArgument, "base_model"),
        ({"base_model": ""}, InvalidArgument, "base_model"),
        ({"training_file": "file-1"}, InvalidArgument, "training_file"),
        ({"training_file": "tenants/acme/files/file-x"}, InvalidArgument, "training_file"),
        ({"suffix": "no spaces"}, InvalidArgument, "suffix"),
        (
            {"method": supervised(hyperparameters=method_pb.Hyperparameters(epochs=51))},
            InvalidArgument,
            "method.hyperparameters.epochs",
        ),
        (
            {"method": supervised(adapter=method_pb.Adapter(dropout=1.0))},
            InvalidArgument,
            "method.adapter.dropout",
        ),
    ],
)
def test_a_bad_request_names_its_field_and_makes_nothing(
    stub: service_pb2_grpc.TunerServiceStub,
    fields: dict[str, object],
    kind: type[MillraceError],
    field: str,
) -> None:
    with pytest.raises(kind) as caught:
        create(stub, **fields)
    assert caught.value.field == field
    assert not call(stub.ListJobs, pb.ListJobsRequest(parent="tenants/acme")).jobs


def test_pause_resume_and_cancel(stub: service_pb2_grpc.TunerServiceStub) -> None:
    name = create(stub).name
    paused = call(stub.PauseJob, pb.PauseJobRequest(name=name)).job
    assert paused.state == lifecycle.WORK_STATE_PAUSED
    resumed = call(stub.ResumeJob, pb.ResumeJobRequest(name=name)).job
    assert resumed.state == lifecycle.WORK_STATE_QUEUED
    cancelled = call(stub.CancelJob, pb.CancelJobRequest(name=name)).job
    assert cancelled.state == lifecycle.WORK_STATE_CANCELLED
    assert cancelled.HasField("finish_time")
    with pytest.raises(FailedPrecondition) as caught:
        call(stub.PauseJob, pb.PauseJobRequest(name=name))
    assert caught.value.reason == "JOB_STATE"


def test_events_are_newest_first_and_paged(
    stub: service_pb2_grpc.TunerServiceStub, parts: Parts
) -> None:
    name = create(stub).name
    parts.validate()
    request = pb.ListJobEventsRequest(parent=name, page_size=2)
    first = call(stub.ListJobEvents, request)
    assert first.events[0].message == "Files validated, moving job to queued state"
    assert first.events[0].level == "info"
    request.page_token = first.next_page_token
    second = call(stub.ListJobEvents, request)
    assert second.events[1].message == f"Created fine-tuning job: {name.rpartition('/')[2]}"
    assert second.next_page_token == ""
    request.page_token = paging.encode_token(first.events[0].id)  # as the gateway pages
    assert call(stub.ListJobEvents, request).events[0] == first.events[1]
    ids = [event.id for event in (*first.events, *second.events)]
    assert len(set(ids)) == 4


def test_checkpoints_are_read_by_name_job_or_all(
    stub: service_pb2_grpc.TunerServiceStub, parts: Parts
) -> None:
    create(stub)
    job, final = parts.train()
    checkpoint = call(stub.GetCheckpoint, pb.GetCheckpointRequest(name=final.name)).checkpoint
    assert checkpoint.valid_loss == 2.25
    assert checkpoint.content.digest == final.content.digest
    assert checkpoint.training_file_digest == job.plan.training_file.content.digest
    for parent in (job.name, "tenants/acme/jobs/-", "tenants/-/jobs/-"):
        listed = call(stub.ListCheckpoints, pb.ListCheckpointsRequest(parent=parent)).checkpoints
        assert list(listed) == [checkpoint]
    with pytest.raises(NotFound):
        call(stub.GetCheckpoint, pb.GetCheckpointRequest(name=f"{final.name}x"))


def test_what_is_another_tenants_is_not_there(
    stub: service_pb2_grpc.TunerServiceStub, parts: Parts
) -> None:
    create(stub)
    job, final = parts.train()
    name = job.name.replace("acme", "other")
    with pytest.raises(NotFound):
        call(stub.GetJob, pb.GetJobRequest(name=name))
    with pytest.raises(NotFound):
        call(stub.CancelJob, pb.CancelJobRequest(name=name))
    with pytest.raises(NotFound):
        call(stub.ListJobEvents, pb.ListJobEventsRequest(parent=name))
    with pytest.raises(NotFound):
        call(stub.ListCheckpoints, pb.ListCheckpointsRequest(parent=name))
    other = final.name.replace("acme", "other")
    with pytest.raises(NotFound):
        call(stub.GetCheckpoint, pb.GetCheckpointRequest(name=other))
    assert not call(stub.ListJobs, pb.ListJobsRequest(parent="tenants/other")).jobs


def test_a_failed_job_says_why(stub: service_pb2_grpc.TunerServiceStub, parts: Parts) -> None:
    from millrace_tuner import steps
    from millrace_tuner.domain import Failure

    name = create(stub).name
    parts.validate()
    lease = parts.claim()
    failure = Failure("INVALID_EXAMPLE", "training file, line 3")
    parts.store.change_leased(lease, lambda job: steps.fail(job, failure, parts.clock()))
    job = call(stub.GetJob, pb.GetJobRequest(name=name)).job
    assert job.state == lifecycle.WORK_STATE_FAILED
    assert (job.failure.reason, job.failure.message) == (failure.reason, failure.message)


@pytest.mark.parametrize("kind", [f.name for f in method_pb.Method.DESCRIPTOR.oneofs[0].fields])
def test_every_method_comes_back_as_it_was_asked_for(parts: Parts, kind: str) -> None:
    """With the documented default where nothing was said, and through the database."""
    demanded = {"reinforcement": "grader", "ppo": "reward_model", "distillation": "teacher"}
    asked = method_pb.Method()
    getattr(asked, kind).SetInParent()
    if kind in demanded:
        setattr(getattr(asked, kind), demanded[kind], "{}")
    method = convert.method_from_proto(asked)
    told = convert.method_to_proto(method)
    assert told.WhichOneof("kind") == method.kind == kind
    assert convert.method_from_proto(told) == method
    plan = replace(parts.create().plan, method=method)
    assert plan_of(PLANS.dump_python(plan, mode="json")) == plan
