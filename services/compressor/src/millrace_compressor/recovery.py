"""What pruning has lost is learned again, by a job of the tuner's.

A compression whose recipe asks for it goes three steps: it prunes, a tuning job distils the
original into what is left, and the artifact is made of that job's final checkpoint. Nothing of
it is remembered here: the job bears the compression's id in its metadata, so whoever takes the
compression up, also after a crash, finds the job and goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace.tuner.v1 import method_pb2 as method
from millrace.tuner.v1 import service_pb2 as tuner
from millrace.tuner.v1 import service_pb2_grpc as tuner_grpc
from millrace_compressor.domain import Compression, Content, Failure, Order, Progress, Target
from millrace_runtime.channel import call, open_channel
from millrace_runtime.errors import FailedPrecondition

PHASE = "recover"
_METADATA = "compression"
_PAGE_SIZE = 500
_UNFINISHED = (
    lifecycle.WORK_STATE_QUEUED,
    lifecycle.WORK_STATE_RUNNING,
    lifecycle.WORK_STATE_PAUSED,
)


@dataclass(frozen=True)
class Student:
    """What is left of a checkpoint, with ``windows`` windows to learn from beside it."""

    content: Content
    windows: int


@dataclass(frozen=True)
class Recovery:
    """How a tuning job stands.

    Attributes:
        checkpoint: what it made; None while it has not.
        failure: why it made nothing, and never will.
    """

    job: str
    compression: str
    tenant: str
    progress: Progress
    checkpoint: Content | None = None
    failure: Failure | None = None


def is_wanted(order: Order) -> bool:
    pruning = order.recipe.get("pruning", {})
    return order.target == Target.SAFETENSORS_PRUNED and bool(pruning.get("recovery"))


class TunerRecoveries:
    """``compression_run.Recoveries`` and ``app.Recoveries``, over gRPC."""

    def __init__(self, stub: tuner_grpc.TunerServiceStub) -> None:
        self._tuner = stub

    @classmethod
    def at(cls, address: str, token: str | None) -> "TunerRecoveries":
        return cls(tuner_grpc.TunerServiceStub(open_channel(address, token)))

    def find(self, compression: Compression) -> Recovery | None:
        """The job of a compression; None: none was made yet.

        Raises:
            Unavailable
        """
        for job in self._jobs(f"tenants/{compression.tenant}", {_METADATA: compression.id}):
            if job.training_file == compression.name:
                return self._seen(job)
        return None

    def start(self, compression: Compression, student: Student) -> Recovery:
        """Make the job; once, however often it is asked for.

        Raises:
            Unavailable
        """
        checkpoint = compression.order.checkpoint
        request = tuner.CreateJobRequest(
            parent=f"tenants/{compression.tenant}",
            base_model=checkpoint.model,
            training_file=compression.name,
            method=method.Method(
                distillation=method.Distillation(teacher=checkpoint.name),
                # An adapter's rank is too little for what was taken away.
                adapter=method.Adapter(kind="none"),
            ),
            metadata={_METADATA: compression.id},
            request_id=compression.id,
            recovery=tuner.Recovery(
                student=_content(student.content),
                teacher=_content(checkpoint.content),
                teacher_checkpoint=checkpoint.name,
                windows=student.windows,
            ),
        )
        return self._seen(call(self._tuner.CreateJob, request).job)

    def unfinished(self) -> Iterator[Recovery]:
        """All jobs for compressions that are still to be done.

        Raises:
            Unavailable
        """
        for job in self._jobs("tenants/-", {}):
            if job.training_file.split("/")[2] == "compressions" and job.state in _UNFINISHED:
                yield self._seen(job)

    def cancel(self, found: Recovery) -> None:
        """Cancel the job; nothing happens when it has ended.

        Raises:
            Unavailable
        """
        try:
            call(self._tuner.CancelJob, tuner.CancelJobRequest(name=found.job))
        except FailedPrecondition:
            return  # it ended meanwhile

    def _jobs(self, parent: str, metadata: dict[str, str]) -> Iterator[Any]:
        token = ""
        while True:
            request = tuner.ListJobsRequest(
                parent=parent, metadata=metadata, page_size=_PAGE_SIZE, page_token=token
            )
            response = call(self._tuner.ListJobs, request)
            yield from response.jobs
            token = response.next_page_token
            if not token:
                return

    def _seen(self, job: Any) -> Recovery:
        _, tenant, _, compression = job.training_file.split("/")
        failure, checkpoint = None, None
        if job.state == lifecycle.WORK_STATE_SUCCEEDED:
            checkpoint = self._final(job.name)
        elif job.state not in _UNFINISHED:
            why = job.failure.message or "it was cancelled"
            failure = Failure("RECOVERY_FAILED", f"the tuning job {job.name} made nothing: {why}")
        told = job.progress
        progress = Progress(PHASE, told.completed, told.total, dict(told.metrics))
        return Recovery(job.name, compression, tenant, progress, checkpoint, failure)

    def _final(self, job: str) -> Content:
        request = tuner.ListCheckpointsRequest(parent=job, page_size=_PAGE_SIZE)
        found = call(self._tuner.ListCheckpoints, request).checkpoints
        (content,) = (checkpoint.content for checkpoint in found if checkpoint.final)
        return Content(content.uri, content.digest, content.size_bytes)


def _content(content: Content) -> lifecycle.Content:
    return lifecycle.Content(uri=content.uri, digest=content.digest, size_bytes=content.size_bytes)
