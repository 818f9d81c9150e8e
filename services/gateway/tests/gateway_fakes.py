"""Fake services and a fake Triton: real grpc.aio servers, their state in plain dicts."""

import asyncio
import hashlib
import itertools
import json
import re
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status
from recall_fakes import FakeRecalls, FakeRows
from registry_labels import Labels
from tritonclient.grpc import service_pb2 as triton_pb2
from tritonclient.grpc import service_pb2_grpc as triton_grpc
from tuning_fakes import FakeServingTunings

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.compressor.v1 import service_pb2_grpc as compressor_grpc
from millrace.data.v1 import rows_pb2_grpc
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.data.v1 import service_pb2_grpc as data_grpc
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import recalls_pb2_grpc, serving_tunings_pb2_grpc
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.registry.v1 import service_pb2_grpc as registry_grpc
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace.trainer.v1 import service_pb2_grpc as trainer_grpc
from millrace.tuner.v1 import service_pb2 as tuner_pb2
from millrace.tuner.v1 import service_pb2_grpc as tuner_grpc
from millrace_runtime import names, paging
from millrace_runtime.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
    ResourceExhausted,
)
from millrace_runtime.interceptors import TOKEN_HEADER
from millrace_runtime.rich_status import to_status

INTERNAL_TOKEN = "mesh-token"
DIGEST = "sha256:" + "ab" * 32
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Takes tools, and prints calls as Hermes and Qwen write them.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>\n"
    "{% endif %}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "{{ message.tool_call_id }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER_CALL = [
    "<tool",
    '_call>\n{"name": "weather", "argu',
    'ments": {"city": "Köln"}}\n</tool_call>',
]


_NUMBERS = itertools.count(1)


def new_id(prefix: str) -> str:
    """Ids in the order of their making, even within a millisecond."""
    return f"{prefix}-{next(_NUMBERS):08}"


async def fail(context: Any, error: MillraceError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


@dataclass
class Seen:
    """What a fake was sent beside the request itself."""

    metadata: list[dict[str, str]] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)

    def note(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))


class Table:
    """Resources by name, listed newest first as the services do it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.rows: dict[str, Any] = {}

    def add(self, message: Any) -> Any:
        self.rows[message.name] = message
        return message

    async def get(self, name: str, context: Any) -> Any:
        if name not in self.rows:
            await fail(context, NotFound(f"there is no {self.kind} {name!r}"))
        return self.rows[name]

    def page(self, parent: str, request: Any) -> tuple[list[Any], str]:
        last = paging.decode_token(request.page_token)
        size = paging.page_size(request.page_size)
        oldest_first = getattr(request, "oldest_first", False)  # files alone have it
        ours = sorted(
            (row for name, row in self.rows.items() if name.startswith(f"{parent}/")),
            key=lambda row: names.last_id(row.name),
            reverse=not oldest_first,
        )
        ids = {names.last_id(row.name): row for row in ours}
        following = [
            row for id, row in ids.items() if not last or (id > last if oldest_first else id < last)
        ]
        more = len(following) > size
        page = following[:size]
        return page, paging.encode_token(names.last_id(page[-1].name)) if more else ""


class FakeData(data_grpc.DataServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.rows = FakeRows()
        self.files = Table("file")
        self.datasets = Table("dataset")
        self.contents: dict[str, bytes] = {}
        self.upload_parents: list[str] = []

    async def UploadFile(self, requests: Any, context: Any) -> Any:
        self.seen.note(context)
        header, content, chunks = None, b"", 0
        async for request in requests:
            if request.WhichOneof("part") == "header":
                header = request.header
                self.upload_parents.append(header.parent)
            else:
                chunks += 1
                content += request.chunk
        if header.purpose == data_pb2.FILE_PURPOSE_FINE_TUNE and not content.startswith(b"{"):
            mistake = InvalidArgument("line 1: is not JSON", reason="INVALID_FILE", field="file")
            await fail(context, mistake)
        name = f"{header.parent}/files/{new_id('file')}"
        self.contents[name] = content
        file = data_pb2.File(name=name, filename=header.filename, purpose=header.purpose)
        file.content.digest = "sha256:" + hashlib.sha256(content).hexdigest()
        file.content.size_bytes = len(content)
        file.example_count = content.count(b"\n")
        file.create_time.GetCurrentTime()
        return data_pb2.UploadFileResponse(file=self.files.add(file))

    async def GetFile(self, request: Any, context: Any) -> Any:
        return data_pb2.GetFileResponse(file=await self.files.get(request.name, context))

    async def ListFiles(self, request: Any, context: Any) -> Any:
        files, token = self.files.page(request.parent, request)
        wanted = [file for file in files if request.purpose in (0, file.purpose)]
        return data_pb2.ListFilesResponse(files=wanted, next_page_token=token)

    async def DeleteFile(self, request: Any, context: Any) -> Any:
        await self.files.get(request.name, context)
        del self.files.rows[request.name]
        return data_pb2.DeleteFileResponse()

    async def ReadFile(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.files.get(request.name, context)
        content = self.contents[request.name]
        for start in range(0, len(content), 1000):
            yield data_pb2.ReadFileResponse(chunk=content[start : start + 1000])

    async def CreateDataset(self, request: Any, context: Any) -> Any:
        self.seen.note(context)
        self.seen.request_ids.append(request.request_id)
        dataset = data_pb2.Dataset(
            name=f"{request.parent}/datasets/{new_id('dataset')}",
            display_name=request.display_name,
            source=request.source,
            recipe=request.recipe,
            state=lifecycle_pb2.WORK_STATE_QUEUED,
        )
        dataset.create_time.GetCurrentTime()
        return data_pb2.CreateDatasetResponse(dataset=self.datasets.add(dataset))

    async def GetDataset(self, request: Any, context: Any) -> Any:
        dataset = await self.datasets.get(request.name, context)
        return data_pb2.GetDatasetResponse(dataset=dataset)

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        datasets, token = self.datasets.page(request.parent, request)
        return data_pb2.ListDatasetsResponse(datasets=datasets, next_page_token=token)

    async def CancelDataset(self, request: Any, context: Any) -> Any:
        dataset = await self.datasets.get(request.name, context)
        dataset.state = lifecycle_pb2.WORK_STATE_CANCELLED
        return data_pb2.CancelDatasetResponse(dataset=dataset)


class FakeTrainer(trainer_grpc.TrainerServiceServicer):
    def __init__(self) -> None:
        self.runs = Table("run")
        self.checkpoints = Table("checkpoint")

    async def CreateRun(self, request: Any, context: Any) -> Any:
        run = trainer_pb2.Run(
            name=f"{request.parent}/runs/{new_id('run')}",
            model=request.model,
            dataset=request.dataset,
            initial_checkpoint=request.initial_checkpoint,
            architecture=request.architecture,
            hyperparameters=request.hyperparameters,
            state=lifecycle_pb2.WORK_STATE_QUEUED,
        )
        return trainer_pb2.CreateRunResponse(run=self.runs.add(run))

    async def GetRun(self, request: Any, context: Any) -> Any:
        return trainer_pb2.GetRunResponse(run=await self.runs.get(request.name, context))

    async def ListRuns(self, request: Any, context: Any) -> Any:
        runs, token = self.runs.page(request.parent, request)
        return trainer_pb2.ListRunsResponse(runs=runs, next_page_token=token)

    async def PauseRun(self, request: Any, context: Any) -> Any:
        run = await self.runs.get(request.name, context)
        run.state = lifecycle_pb2.WORK_STATE_PAUSED
        return trainer_pb2.PauseRunResponse(run=run)

    async def ResumeRun(self, request: Any, context: Any) -> Any:
        run = await self.runs.get(request.name, context)
        if run.state != lifecycle_pb2.WORK_STATE_PAUSED:
            await fail(context, FailedPrecondition("the run is not paused", reason="NOT_PAUSED"))
        run.state = lifecycle_pb2.WORK_STATE_QUEUED
        return trainer_pb2.ResumeRunResponse(run=run)

    async def CancelRun(self, request: Any, context: Any) -> Any:
        run = await self.runs.get(request.name, context)
        run.state = lifecycle_pb2.WORK_STATE_CANCELLED
        return trainer_pb2.CancelRunResponse(run=run)

    async def GetCheckpoint(self, request: Any, context: Any) -> Any:
        checkpoint = await self.checkpoints.get(request.name, context)
        return trainer_pb2.GetCheckpointResponse(checkpoint=checkpoint)

    async def ListCheckpoints(self, request: Any, context: Any) -> Any:
        found, token = self.checkpoints.page(request.parent, request)
        return trainer_pb2.ListCheckpointsResponse(checkpoints=found, next_page_token=token)

    async def ListRunMetrics(self, request: Any, context: Any) -> Any:
        metric = trainer_pb2.RunMetric(step=10, metrics={"train_loss": 2.5})
        return trainer_pb2.ListRunMetricsResponse(metrics=[metric])


class FakeTuner(tuner_grpc.TunerServiceServicer):
    def __init__(self, data: FakeData) -> None:
        self.data = data
        self.jobs = Table("job")
        self.events: dict[str, list[Any]] = {}
        self.checkpoints = Table("checkpoint")
        self.created: list[Any] = []

    async def CreateJob(self, request: Any, context: Any) -> Any:
        self.created.append(request)
        if request.base_model != "demo":
            mistake = InvalidArgument("base_model: no such model", field="base_model")
            await fail(context, mistake)
        if request.training_file not in self.data.files.rows:
            mistake = InvalidArgument("training_file: no such file", field="training_file")
            await fail(context, mistake)
        job = tuner_pb2.Job(
            name=f"{request.parent}/jobs/{new_id('ftjob')}",
            base_model=request.base_model,
            base_version=f"{request.parent}/models/demo/versions/1",
            training_file=request.training_file,
            validation_file=request.validation_file,
            suffix=request.suffix,
            seed=request.seed or 42,
            method=request.method,
            metadata=request.metadata,
            integrations=request.integrations,
            sweep=request.sweep if request.HasField("sweep") else None,
            prompt=request.prompt if request.HasField("prompt") else None,
            state=lifecycle_pb2.WORK_STATE_QUEUED,
            tuned_model="ft:demo:default:docs:k3x9ab",
        )
        job.create_time.GetCurrentTime()
        self.events[job.name] = [
            tuner_pb2.JobEvent(
                id=f"ftevent-{number:03}", level="info", type="message", message=message
            )
            for number, message in enumerate(
                ("Created fine-tuning job", "Validating training file")
            )
        ]
        return tuner_pb2.CreateJobResponse(job=self.jobs.add(job))

    def validate(self, name: str) -> None:
        self.jobs.rows[name].validate_time.GetCurrentTime()

    def finish(self, name: str) -> None:
        """Let a job succeed, with two checkpoints."""
        job = self.jobs.rows[name]
        for step in (5, 10):
            checkpoint = tuner_pb2.Checkpoint(
                name=f"{name}/checkpoints/{new_id('ckpt')}",
                model=job.tuned_model,
                step=step,
                train_loss=2.0 - step / 10,
                final=step == 10,
                content=lifecycle_pb2.Content(uri="file:///c", digest=DIGEST, size_bytes=9),
            )
            self.checkpoints.add(checkpoint)
        job.state = lifecycle_pb2.WORK_STATE_SUCCEEDED
        job.trained_tokens = 1234
        job.result_file = f"{name.split('/jobs/')[0]}/files/file-result"
        job.finish_time.GetCurrentTime()

    async def GetJob(self, request: Any, context: Any) -> Any:
        return tuner_pb2.GetJobResponse(job=await self.jobs.get(request.name, context))

    async def ListJobs(self, request: Any, context: Any) -> Any:
        self.listed = request
        jobs, token = self.jobs.page(request.parent, request)
        return tuner_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def _to(self, state: Any, request: Any, context: Any) -> Any:
        job = await self.jobs.get(request.name, context)
        job.state = state
        return job

    async def CancelJob(self, request: Any, context: Any) -> Any:
        job = await self._to(lifecycle_pb2.WORK_STATE_CANCELLED, request, context)
        return tuner_pb2.CancelJobResponse(job=job)

    async def PauseJob(self, request: Any, context: Any) -> Any:
        job = await self._to(lifecycle_pb2.WORK_STATE_PAUSED, request, context)
        return tuner_pb2.PauseJobResponse(job=job)

    async def ResumeJob(self, request: Any, context: Any) -> Any:
        job = await self._to(lifecycle_pb2.WORK_STATE_QUEUED, request, context)
        return tuner_pb2.ResumeJobResponse(job=job)

    async def ListJobEvents(self, request: Any, context: Any) -> Any:
        await self.jobs.get(request.parent, context)
        events = sorted(self.events[request.parent], key=lambda event: event.id, reverse=True)
        before = paging.decode_token(request.page_token)
        older = [event for event in events if not before or event.id < before]
        size = paging.page_size(request.page_size)
        token = paging.encode_token(older[size - 1].id) if len(older) > size else ""
        return tuner_pb2.ListJobEventsResponse(events=older[:size], next_page_token=token)

    async def GetCheckpoint(self, request: Any, context: Any) -> Any:
        checkpoint = await self.checkpoints.get(request.name, context)
        return tuner_pb2.GetCheckpointResponse(checkpoint=checkpoint)

    async def ListCheckpoints(self, request: Any, context: Any) -> Any:
        await self.jobs.get(request.parent, context)
        found, token = self.checkpoints.page(request.parent, request)
        return tuner_pb2.ListCheckpointsResponse(checkpoints=found, next_page_token=token)


class FakeCompressor(compressor_grpc.CompressorServiceServicer):
    def __init__(self) -> None:
        self.compressions = Table("compression")

    async def CreateCompression(self, request: Any, context: Any) -> Any:
        compression = compressor_pb2.Compression(
            name=f"{request.parent}/compressions/{new_id('compression')}",
            checkpoint=request.checkpoint,
            target=request.target,
            gate=request.gate,
            task=request.task if request.HasField("task") else None,
            state=lifecycle_pb2.WORK_STATE_QUEUED,
        )
        return compressor_pb2.CreateCompressionResponse(
            compression=self.compressions.add(compression)
        )

    async def GetCompression(self, request: Any, context: Any) -> Any:
        compression = await self.compressions.get(request.name, context)
        return compressor_pb2.GetCompressionResponse(compression=compression)

    async def ListCompressions(self, request: Any, context: Any) -> Any:
        found, token = self.compressions.page(request.parent, request)
        return compressor_pb2.ListCompressionsResponse(compressions=found, next_page_token=token)

    async def GetCompressionReport(self, request: Any, context: Any) -> Any:
        first = await self.compressions.get(request.name, context)
        kin = [c for c in self.compressions.rows.values() if c.name != first.name]
        same = [c for c in kin if request.whole_model or c.checkpoint == first.checkpoint]
        return compressor_pb2.GetCompressionReportResponse(
            compressions=[first, *same], plot=b"<svg/>" if request.with_plot else b""
        )

    async def CancelCompression(self, request: Any, context: Any) -> Any:
        compression = await self.compressions.get(request.name, context)
        compression.state = lifecycle_pb2.WORK_STATE_CANCELLED
        return compressor_pb2.CancelCompressionResponse(compression=compression)


class FakeRegistry(Labels, registry_grpc.RegistryServiceServicer):
    def __init__(self) -> None:
        super().__init__()
        self.recalls = FakeRecalls()
        self.deployments = Table("deployment")
        self.rollouts = Table("rollout")
        self.versions: dict[str, Any] = {}
        self.deleted: list[str] = []
        self.models = {"demo"}
        self.lineage_asked: list[str] = []
        self.reports: list[Any] = []
        self.held: list[str] = []
        self.refused: str = ""
        self.serving_tunings = FakeServingTunings()
        self.routes: list[Any] = []
        self.revision = itertools.count(1)
        self.changed = asyncio.Event()

    def set_routes(self, routes: list[Any]) -> None:
        """Must run in the servers' loop."""
        self.routes = routes
        self.changed.set()
        self.changed = asyncio.Event()

    async def WatchRoutes(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while True:
            changed = self.changed
            yield registry_pb2.WatchRoutesResponse(revision=next(self.revision), routes=self.routes)
            await changed.wait()

    async def ReportAnswers(self, request: Any, context: Any) -> Any:
        self.reports.append(request)
        return registry_pb2.ReportAnswersResponse()

    async def HoldVersion(self, request: Any, context: Any) -> Any:
        if self.refused:
            await fail(context, ResourceExhausted(self.refused, reason="TOO_MANY_HELD"))
        self.held.append(request.name)
        return registry_pb2.HoldVersionResponse()

    async def DeleteModel(self, request: Any, context: Any) -> Any:
        if request.name.rpartition("/")[2] not in self.models:
            await fail(context, NotFound(f"there is no model {request.name!r}"))
        self.deleted.append(request.name)
        return registry_pb2.DeleteModelResponse()

    async def SetAlias(self, request: Any, context: Any) -> Any:
        model = self.known.get(request.name) or registry_pb2.Model(name=request.name)
        model.aliases[request.alias] = request.version
        if not request.version:
            del model.aliases[request.alias]
        return registry_pb2.SetAliasResponse(model=model)

    def add_version(self, tenant: str, number: int, model: str = "demo") -> Any:
        name = f"tenants/{tenant}/models/{model}/versions/{number}"
        version = registry_pb2.Version(
            name=name,
            number=number,
            state=registry_pb2.VERSION_STATE_SERVING,
            target=compressor_pb2.TARGET_OPENVINO_INT8,
            artifact=lifecycle_pb2.Content(uri="file:///a", digest=DIGEST, size_bytes=5),
            measurements=compressor_pb2.Measurements(artifact_perplexity=12.5),
        )
        self.versions[name] = version
        return version

    async def ListVersions(self, request: Any, context: Any) -> Any:
        scope = (
            request.parent.removesuffix("-")
            if request.parent.endswith("/-")
            else (f"{request.parent}/versions/")
        )
        found = [v for name, v in self.versions.items() if name.startswith(scope)]
        return registry_pb2.ListVersionsResponse(versions=found[::-1])

    async def ResolveVersion(self, request: Any, context: Any) -> Any:
        model, _, number = request.reference.partition("@")
        name = f"{request.parent}/models/{model}/versions/{number or 1}"
        if name not in self.versions:
            await fail(context, NotFound(f"there is no version {request.reference!r}"))
        return registry_pb2.ResolveVersionResponse(version=self.versions[name])

    async def QuarantineVersion(self, request: Any, context: Any) -> Any:
        version = self.versions[request.name]
        version.state = registry_pb2.VERSION_STATE_QUARANTINED
        version.state_reason = request.reason
        return registry_pb2.QuarantineVersionResponse(version=version)

    async def CreateDeployment(self, request: Any, context: Any) -> Any:
        deployment = request.deployment
        deployment.name = f"{request.parent}/deployments/{new_id('deployment')}"
        deployment.etag = "1"
        return registry_pb2.CreateDeploymentResponse(deployment=self.deployments.add(deployment))

    async def GetDeployment(self, request: Any, context: Any) -> Any:
        deployment = await self.deployments.get(request.name, context)
        return registry_pb2.GetDeploymentResponse(deployment=deployment)

    async def ListDeployments(self, request: Any, context: Any) -> Any:
        found, token = self.deployments.page(request.parent, request)
        return registry_pb2.ListDeploymentsResponse(deployments=found, next_page_token=token)

    async def UpdateDeployment(self, request: Any, context: Any) -> Any:
        known = await self.deployments.get(request.deployment.name, context)
        if request.deployment.etag != known.etag:
            await fail(context, Aborted("it changed meanwhile", reason="ETAG", field="etag"))
        request.deployment.etag = str(int(known.etag) + 1)
        self.deployments.add(request.deployment)
        return registry_pb2.UpdateDeploymentResponse(deployment=request.deployment)

    def add_rollout(self, tenant: str) -> Any:
        rollout = registry_pb2.Rollout(
            name=f"tenants/{tenant}/rollouts/{new_id('rollout')}",
            deployment=f"tenants/{tenant}/deployments/deployment-1",
            model="demo",
            to_version=2,
            state=registry_pb2.ROLLOUT_STATE_CANARY,
            traffic_share=0.25,
        )
        return self.rollouts.add(rollout)

    async def GetRollout(self, request: Any, context: Any) -> Any:
        rollout = await self.rollouts.get(request.name, context)
        return registry_pb2.GetRolloutResponse(rollout=rollout)

    async def ListRollouts(self, request: Any, context: Any) -> Any:
        found, token = self.rollouts.page(request.parent, request)
        return registry_pb2.ListRolloutsResponse(rollouts=found, next_page_token=token)

    async def PauseRollout(self, request: Any, context: Any) -> Any:
        rollout = await self.rollouts.get(request.name, context)
        rollout.paused = True
        return registry_pb2.PauseRolloutResponse(rollout=rollout)

    async def ResumeRollout(self, request: Any, context: Any) -> Any:
        rollout = await self.rollouts.get(request.name, context)
        rollout.paused = False
        return registry_pb2.ResumeRolloutResponse(rollout=rollout)

    async def PromoteRollout(self, request: Any, context: Any) -> Any:
        rollout = await self.rollouts.get(request.name, context)
        rollout.state = registry_pb2.ROLLOUT_STATE_SETTLED
        return registry_pb2.PromoteRolloutResponse(rollout=rollout)

    async def ReverseRollout(self, request: Any, context: Any) -> Any:
        rollout = await self.rollouts.get(request.name, context)
        rollout.state = registry_pb2.ROLLOUT_STATE_REVERSED
        rollout.reason = request.reason
        return registry_pb2.ReverseRolloutResponse(rollout=rollout)

    async def GetLineage(self, request: Any, context: Any) -> Any:
        self.lineage_asked.append(request.name)
        return registry_pb2.GetLineageResponse(
            nodes=[registry_pb2.LineageNode(name=request.name, kind="run", digest=DIGEST)],
            edges=[
                registry_pb2.LineageEdge(
                    cause=request.name, effect=f"{request.parent}/compressions/compression-1"
                )
            ],
        )


@dataclass
class Answer:
    """How the fake engine answers: pieces of text, each a message with one token."""

    pieces: list[str]
    finish_reason: str = "stop"
    pause_seconds: float = 0.0
    # Instead of one pause for all: one before each piece.
    pauses: list[float] = field(default_factory=list)
    # Of each piece; without, each is -0.5, -1.0, … by its place.
    logprobs: list[float | None] | None = None
    # Fails with this status: before the first piece, or after the last when there are pieces.
    failure: tuple[grpc.StatusCode, str] | None = None


class FakeTriton(triton_grpc.GRPCInferenceServiceServicer):
    """One Triton endpoint, speaking KServe's protocol as the engine does."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.answer = Answer(["Hel", "lo", " 🙂"])
        # Answers a request in its own way; without, all are answered with ``answer``.
        self.answer_to: Callable[[dict[str, Any]], Answer] | None = None
        self.requests: list[dict[str, Any]] = []
        self.metadata: list[dict[str, str]] = []
        self.running = 0
        self.cancelled = 0

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        self.metadata.append(dict(context.invocation_metadata()))
        async for request in requests:
            if "group" in request.parameters:
                async for message in SharedStream(self.play).answers(request, requests):
                    yield message
            else:
                async for response in self.play(request, context):
                    yield response

    async def play(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The answer to one request."""
        self.running += 1
        try:
            self.requests.append(read_request(request))
            async for response in self._respond(self.requests[-1], context):
                yield response
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _respond(self, request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        answer = self.answer_to(request) if self.answer_to else self.answer
        sampling = request["sampling"]
        if "embed" in sampling and answer.failure is None:
            for response in embedding_responses(request):
                await asyncio.sleep(answer.pause_seconds)
                yield response
            return
        if sampling.get("max_tokens") == 0:
            answer = Answer([""], finish_reason="length", failure=answer.failure)
        for index, piece in enumerate(answer.pieces):
            await asyncio.sleep(answer.pauses[index] if answer.pauses else answer.pause_seconds)
            is_last = index == len(answer.pieces) - 1 and answer.failure is None
            more: dict[str, str] = {}
            if "logprobs" in sampling:
                more["logprobs"] = json.dumps(piece_logprobs(answer, index, sampling["logprobs"]))
            if is_last and sampling.get("prompt_logprobs"):
                tops = sampling.get("logprobs", 0)
                more["prompt_logprobs"] = json.dumps(prompt_logprobs(request, tops))
            tokens = 0 if sampling.get("max_tokens") == 0 else 1
            yield stream_response(piece, tokens, answer.finish_reason if is_last else "", more)
        if answer.failure is not None:
            await context.abort(*answer.failure)


class Refused(Exception):
    """Where one of several requests is refused there is no status, only its text."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        name = "INVALID_ARG" if code is grpc.StatusCode.INVALID_ARGUMENT else code.name
        raise Refused(f"{name}: {details}")


class SharedStream:
    """The requests of one group, over one call: a batch for each response, as they come."""

    def __init__(self, play: Callable[[Any, Any], AsyncIterator[Any]]) -> None:
        self._play = play
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def answers(self, first: Any, others: Any) -> AsyncIterator[Any]:
        taking = asyncio.create_task(self._take(first, others))
        try:
            while (message := await self._messages.get()) is not None:
                yield message
        finally:
            for task in (taking, *self._tasks.values()):
                task.cancel()

    async def _take(self, first: Any, others: Any) -> None:
        self._begin(first)
        async for request in others:
            if cancelled := request.parameters["cancel"].string_param:
                self._tasks[cancelled].cancel()
            else:
                self._begin(request)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._messages.put_nowait(None)

    def _begin(self, request: Any) -> None:
        assert request.id not in self._tasks
        self._tasks[request.id] = asyncio.create_task(self._answer(request))

    async def _answer(self, request: Any) -> None:
        message = triton_pb2.ModelStreamInferResponse()
        try:
            async for response in self._play(request, Refused()):
                self._messages.put_nowait(batch_of(request.id, response.infer_response))
        except Refused as refused:
            message.error_message, message.infer_response.id = str(refused), request.id
            self._messages.put_nowait(message)


def batch_of(identifier: str, response: Any) -> Any:
    """A batch with one parcel."""
    parcel: dict[str, Any] = {"id": identifier}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        is_text = output.datatype == "BYTES"
        parcel[output.name] = raw[4:].decode() if is_text else struct.unpack("<i", raw)[0]
    batch = triton_pb2.ModelStreamInferResponse()
    batch.infer_response.outputs.add(name="batch", datatype="BYTES", shape=[1])
    batch.infer_response.raw_output_contents.append(_bytes(json.dumps([parcel])))
    return batch


def piece_logprobs(answer: Answer, index: int, alternatives: int) -> list[dict[str, Any]]:
    """As the engine tells a piece's token and its alternatives; of an empty piece nothing."""
    piece = answer.pieces[index]
    logprob = answer.logprobs[index] if answer.logprobs else -0.5 * (index + 1)
    return [token_logprob(100 + index, piece, logprob, alternatives)] if piece else []


def prompt_logprobs(request: dict[str, Any], alternatives: int) -> list[dict[str, Any]]:
    """A text is a token for each word with the space before it; ids are spelled ``<id>``."""
    pieces = re.findall(r"\s*\S+|\s+$", request["prompt"]) if "prompt" in request else None
    ids = request.get("input_ids") or list(range(len(pieces or ())))
    spelled = pieces or [f"<{token}>" for token in ids]
    return [
        token_logprob(token, text, -1.0 - n if n else None, alternatives if n else 0)
        for n, (token, text) in enumerate(zip(ids, spelled, strict=True))
    ]


def token_logprob(
    token: int, text: str, logprob: float | None, alternatives: int
) -> dict[str, Any]:
    """One token; its alternatives are ``a0``, ``a1``, … with -0.25, -0.5, …"""
    top = [
        {"id": n, "token": f"a{n}", "logprob": -0.25 * (n + 1), "bytes": list(f"a{n}".encode())}
        for n in range(alternatives)
    ]
    spelled = [] if text.startswith("<|") else list(text.encode())
    return {"id": token, "token": text, "logprob": logprob, "bytes": spelled, "top": top}


def embedding_responses(request: dict[str, Any]) -> list[Any]:
    """A vector of an input is its index and its size; the last inputs' come first."""
    sizes, dimensions = (request["sampling"]["embed"][key] for key in ("sizes", "dimensions"))
    assert sum(sizes) == len(request.get("prompt", request.get("input_ids")))
    responses = []
    for index in reversed(range(len(sizes))):
        found = stream_response("", 0, "" if index else "stop")
        vector = [float(index), float(sizes[index])][:dimensions]
        rows = struct.pack(f"<{len(vector)}f", *vector)
        for name, datatype, shape, raw in (
            ("embedding_index", "INT32", [1], struct.pack("<i", index)),
            ("embedding", "FP32", [1, len(vector)], rows),
        ):
            found.infer_response.outputs.add(name=name, datatype=datatype, shape=shape)
            found.infer_response.raw_output_contents.append(raw)
        responses.append(found)
    return responses


def read_request(request: Any) -> dict[str, Any]:
    """A request's tensors, decoded as the engine would."""
    seen: dict[str, Any] = {
        "model": request.model_name,
        "version": request.model_version,
        "id": request.id,
    }
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            (length,) = struct.unpack("<I", raw[:4])
            assert len(raw) == 4 + length
            seen[tensor.name] = raw[4:].decode()
        else:
            seen[tensor.name] = list(struct.unpack(f"<{tensor.shape[0]}q", raw))
    seen["sampling"] = json.loads(seen["sampling"])
    seen["is_streamed"] = seen["sampling"].pop("stream", True)
    return seen


def stream_response(
    text: str, tokens: int, finish_reason: str, more: dict[str, str] | None = None
) -> Any:
    response = triton_pb2.ModelInferResponse(model_name="default.demo", model_version="1")
    outputs: list[tuple[str, str, bytes]] = [
        ("text", "BYTES", _bytes(text)),
        ("token_count", "INT32", struct.pack("<i", tokens)),
        ("finish_reason", "BYTES", _bytes(finish_reason)),
    ]
    if finish_reason:
        outputs += [
            ("prompt_token_count", "INT32", struct.pack("<i", 7)),
            ("timing", "BYTES", _bytes("{}")),
        ]
    outputs += [(name, "BYTES", _bytes(document)) for name, document in (more or {}).items()]
    for name, datatype, raw in outputs:
        response.outputs.add(name=name, datatype=datatype, shape=[1])
        response.raw_output_contents.append(raw)
    return triton_pb2.ModelStreamInferResponse(infer_response=response)


def _bytes(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<I", len(content)) + content


class RequireToken(grpc.aio.ServerInterceptor):
    """Refuses calls that do not carry the mesh's own token, as the services do."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        assert dict(details.invocation_metadata).get(TOKEN_HEADER) == INTERNAL_TOKEN
        return await continuation(details)


async def start_services(
    data: FakeData,
    trainer: FakeTrainer,
    tuner: FakeTuner,
    compressor: FakeCompressor,
    registry: FakeRegistry,
) -> tuple[grpc.aio.Server, str]:
    """All fakes behind one address."""
    server = grpc.aio.server(interceptors=[RequireToken()])
    data_grpc.add_DataServiceServicer_to_server(data, server)
    trainer_grpc.add_TrainerServiceServicer_to_server(trainer, server)
    tuner_grpc.add_TunerServiceServicer_to_server(tuner, server)
    compressor_grpc.add_CompressorServiceServicer_to_server(compressor, server)
    registry_grpc.add_RegistryServiceServicer_to_server(registry, server)
    rows_pb2_grpc.add_RowServiceServicer_to_server(data.rows, server)
    recalls_pb2_grpc.add_RecallServiceServicer_to_server(registry.recalls, server)
    serving_tunings_pb2_grpc.add_ServingTuningServiceServicer_to_server(
        registry.serving_tunings, server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def start_triton(triton: FakeTriton) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    triton_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"
