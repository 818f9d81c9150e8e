"""``/v1/fine_tuning/jobs/{id}/events?stream=true``: live, resumed, ended, and left."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import openai
import pytest
from gateway_mesh import Mesh
from openai.types.fine_tuning import FineTuningJobEvent

from millrace.data.v1 import service_pb2 as data_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.tuner.v1 import method_pb2
from millrace.tuner.v1 import service_pb2 as pb
from millrace_gateway.rest import fine_tuning_events
from millrace_gateway.rest.fine_tuning_events import JobReader, News, tell
from millrace_runtime import paging
from millrace_runtime.errors import InvalidArgument, MillraceError, NotFound, Unavailable
from millrace_testkit.servers import wait_until

NAME = "tenants/default/jobs/ftjob-1"
METHOD = method_pb2.Method(supervised=method_pb2.Supervised())
PATH = "/v1/fine_tuning/jobs/ftjob-1/events"


def event(number: int) -> pb.JobEvent:
    return pb.JobEvent(
        id=f"ftevent-{number:04}", level="info", type="message", message=f"event {number}"
    )


@pytest.fixture
def job(mesh: Mesh) -> pb.Job:
    """A running job with two events."""
    made = pb.Job(
        name=NAME,
        base_model="demo",
        training_file="tenants/default/files/file-1",
        state=lifecycle_pb2.WORK_STATE_RUNNING,
        tuned_model="ft:demo:default::k3x9ab",
        method=METHOD,
    )
    mesh.data.files.add(data_pb2.File(name="tenants/default/files/file-1"))
    mesh.tuner.jobs.add(made)
    mesh.tuner.events[NAME] = [event(1), event(2)]
    return made


def in_mesh(mesh: Mesh, change: Callable[[], Any]) -> None:
    async def run() -> None:
        change()

    mesh.in_loop(run)


class Follower:
    """Reads the stream in a thread."""

    def __init__(self, mesh: Mesh, query: str = "stream=true", **headers: str) -> None:
        self.text = ""
        self.ended = False
        self._client = mesh.http(**headers)
        self._query = query
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._client.stream("GET", f"{PATH}?{self._query}") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            for text in response.iter_text():
                self.text += text
        self.ended = True

    def wait(self) -> None:
        self._thread.join(30)
        assert self.ended


def blocks(text: str) -> list[dict[str, str]]:
    return [
        dict(line.split(": ", 1) for line in block.split("\n"))
        for block in text.split("\n\n")
        if block and not block.startswith(":")
    ]


def test_events_come_as_they_happen_until_the_job_ends(mesh: Mesh, job: pb.Job) -> None:
    follower = Follower(mesh)
    wait_until(lambda: "event 2" in follower.text, 20, "what happened before")
    in_mesh(mesh, lambda: mesh.tuner.events[NAME].append(event(3)))
    wait_until(lambda: "event 3" in follower.text, 20, "what happens now")
    in_mesh(mesh, lambda: mesh.tuner.finish(NAME))
    follower.wait()
    *events, last, done = blocks(follower.text)
    assert [(one["id"], one["event"]) for one in events] == [
        (f"ftevent-000{number}", "fine_tuning.job.event") for number in (1, 2, 3)
    ]
    assert json.loads(events[2]["data"])["message"] == "event 3"
    assert last["event"] == "fine_tuning.job"
    assert json.loads(last["data"])["status"] == "succeeded"
    assert done == {"data": "[DONE]"}


def test_an_ended_job_is_told_from_after_the_last_event_that_is_known(
    mesh: Mesh, job: pb.Job
) -> None:
    mesh.tuner.finish(NAME)
    text = mesh.http(**{"last-event-id": "ftevent-0001"}).get(f"{PATH}?stream=true").text
    assert [block.get("id") for block in blocks(text)] == ["ftevent-0002", None, None]
    text = mesh.http().get(f"{PATH}?stream=true&after=ftevent-0002").text
    assert [block.get("event") for block in blocks(text)] == ["fine_tuning.job", None]


def test_the_openai_package_reads_the_stream(mesh: Mesh, job: pb.Job) -> None:
    mesh.tuner.finish(NAME)
    told = mesh.openai().get(
        f"{PATH.removeprefix('/v1')}?stream=true",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
    )
    assert [one.object for one in told] == [*["fine_tuning.job.event"] * 2, "fine_tuning.job"]


def test_without_stream_it_is_the_sdks_list(mesh: Mesh, job: pb.Job) -> None:
    listed = mesh.openai().fine_tuning.jobs.list_events("ftjob-1", limit=1)
    assert [one.message for one in listed] == ["event 2", "event 1"]


def test_progress_is_told_when_it_is_asked_for(mesh: Mesh, job: pb.Job) -> None:
    follower = Follower(mesh, "stream=true&progress=true")
    wait_until(lambda: "fine_tuning.job\n" in follower.text, 20, "the job as it is")
    progress = lifecycle_pb2.Progress(phase="train", completed=3, total=9)
    in_mesh(mesh, lambda: job.progress.CopyFrom(progress))
    wait_until(lambda: '"completed":3' in follower.text, 20, "its progress")
    in_mesh(mesh, lambda: mesh.tuner.finish(NAME))
    follower.wait()
    jobs = [block for block in blocks(follower.text) if block.get("event") == "fine_tuning.job"]
    assert [json.loads(block["data"])["status"] for block in jobs] == [
        "running",
        "running",
        "succeeded",
    ], "no job is told twice"


@pytest.mark.parametrize(
    ("path", "headers", "status", "param"),
    [
        (PATH.replace("ftjob-1", "ftjob-2"), {}, 404, None),
        (PATH.replace("ftjob-1", "a.b"), {}, 404, None),
        (PATH, {"last-event-id": "ftevent-9"}, 400, "last_event_id"),
    ],
)
def test_mistakes_are_answers(
    mesh: Mesh, job: pb.Job, path: str, headers: dict[str, str], status: int, param: str | None
) -> None:
    response = mesh.http(**headers).get(f"{path}?stream=true")
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


def test_stream_is_a_boolean(mesh: Mesh, job: pb.Job) -> None:
    response = mesh.http().get(f"{PATH}?stream=perhaps")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream"


def test_another_tenants_job_is_not_there(mesh: Mesh, job: pb.Job) -> None:
    assert mesh.http(mesh.other_secret).get(f"{PATH}?stream=true").status_code == 404


def test_a_client_that_goes_is_not_read_for_any_more(
    mesh: Mesh, job: pb.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()

    async def told(*arguments: Any, **options: Any) -> AsyncIterator[bytes]:
        try:
            async for piece in tell(*arguments, **options):
                yield piece
        finally:
            left.set()

    monkeypatch.setattr(fine_tuning_events, "tell", told)
    client: httpx.Client = mesh.http()
    with client.stream("GET", f"{PATH}?stream=true") as response:
        texts = response.iter_text()  # kept: the connection goes with it
        assert "event 1" in next(texts)
        assert not left.is_set()
    assert left.wait(20)


class FakeTuner:
    """Pages of a history of ``count`` events; ``failures`` are raised before it answers."""

    def __init__(self, count: int, *failures: MillraceError) -> None:
        self.events = [event(number) for number in range(1, count + 1)]
        self.job = pb.Job(name=NAME, state=lifecycle_pb2.WORK_STATE_RUNNING, method=METHOD)
        self.failures = list(failures)
        self.pages: list[int] = []

    async def GetJob(self, request: pb.GetJobRequest) -> pb.GetJobResponse:
        if self.failures:
            raise self.failures.pop(0)
        return pb.GetJobResponse(job=self.job)

    async def ListJobEvents(self, request: pb.ListJobEventsRequest) -> pb.ListJobEventsResponse:
        self.pages.append(request.page_size)
        before = paging.decode_token(request.page_token)
        older = [one for one in self.events[::-1] if not before or one.id < before]
        page = older[: request.page_size]
        token = paging.encode_token(page[-1].id) if len(older) > len(page) else ""
        return pb.ListJobEventsResponse(events=page, next_page_token=token)


def test_every_event_is_read_once_and_in_order_however_many_there_are() -> None:
    async def run() -> None:
        tuner = FakeTuner(1203)
        reader = JobReader(tuner, NAME)
        first = await reader.read()
        assert list(first.events) == tuner.events
        assert tuner.pages == [20, 500, 500, 500]
        tuner.pages.clear()
        assert (await reader.read()).events == []
        tuner.events += [event(number) for number in range(1204, 1300)]
        assert list((await reader.read()).events) == tuner.events[1203:]
        assert tuner.pages == [20, 20, 500]

    asyncio.run(run())


def test_an_event_that_never_was_is_no_place_to_go_on_from() -> None:
    async def run() -> None:
        with pytest.raises(InvalidArgument, match="no event 'x'"):
            await JobReader(FakeTuner(30), NAME, "x").read()

    asyncio.run(run())


def caller() -> Any:
    gateway = SimpleNamespace(draining=asyncio.Event())
    return SimpleNamespace(gateway=gateway, tenant="default", relative=str)


def pieces(tuner: FakeTuner, count: int, caller: Any, **options: Any) -> list[bytes]:
    """The first ``count`` pieces of a stream whose job has told all that is known."""

    async def run() -> list[bytes]:
        known = News(tuner.job, ())
        reader = JobReader(tuner, NAME, tuner.events[-1].id)
        told = tell(caller, reader, known, with_progress=False, poll_seconds=0, **options)
        found = []
        async for piece in told:
            found.append(piece)
            if len(found) == count:
                break
        return found

    return asyncio.run(run())


def test_silence_is_filled_and_a_tuner_that_is_away_is_waited_for() -> None:
    away = Unavailable("away", reason="SERVICE_UNAVAILABLE")
    ticks = iter(range(1000))
    tuner = FakeTuner(3, away, away)
    found = pieces(tuner, 3, caller(), heartbeat_seconds=5, clock=lambda: float(next(ticks)))
    assert found == [b": heartbeat\n\n"] * 3
    assert tuner.failures == []
    assert next(ticks) >= 15, "none before its time"


def test_an_error_that_stays_ends_the_stream_with_its_name() -> None:
    (found,) = pieces(FakeTuner(3, NotFound("there is no job")), 9, caller())
    kind, data = found.decode().strip().split("\n")
    assert kind == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "there is no job"


def test_a_gateway_that_stops_ends_the_stream_without_an_end_of_the_job() -> None:
    stopping = caller()
    stopping.gateway.draining.set()
    assert pieces(FakeTuner(3), 9, stopping) == []


def test_a_refusal_by_grpc_is_an_error_too() -> None:
    class Refusing(FakeTuner):
        async def GetJob(self, request: pb.GetJobRequest) -> pb.GetJobResponse:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone"
            )

    (found,) = pieces(Refusing(1), 9, caller())
    assert found.startswith(b"event: error\n")
