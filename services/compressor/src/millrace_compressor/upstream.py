"""The services that the compressor asks: the registry, and those that make checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.registry.v1 import service_pb2_grpc as registry_grpc
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace.trainer.v1 import service_pb2_grpc as trainer_grpc
from millrace.tuner.v1 import service_pb2 as tuner_pb2
from millrace.tuner.v1 import service_pb2_grpc as tuner_grpc
from millrace_compressor import convert
from millrace_compressor.domain import Checkpoint, Content, GatePolicy, Target
from millrace_compressor.recovery import TunerRecoveries
from millrace_compressor.settings import CompressorSettings
from millrace_runtime import names
from millrace_runtime.channel import call, open_channel

_PAGE_SIZE = 500


@dataclass(frozen=True)
class WantedBy:
    """A deployment, as far as the compressor cares (``app.Wanted``)."""

    deployment: str
    targets: Sequence[Target]
    gate: GatePolicy
    recipe: Mapping[str, Any]
    task: Mapping[str, Any]


class RegistryDeployments:
    """``app.Deployments`` over gRPC."""

    def __init__(self, registry: registry_grpc.RegistryServiceStub) -> None:
        self._registry = registry

    @classmethod
    def at(cls, address: str, token: str | None) -> "RegistryDeployments":
        return cls(registry_grpc.RegistryServiceStub(open_channel(address, token)))

    def match(self, tenant: str, checkpoint: Checkpoint) -> Sequence[WantedBy]:
        request = registry_pb2.MatchDeploymentsRequest(
            parent=f"tenants/{tenant}", model=checkpoint.model, final=checkpoint.final
        )
        response = call(self._registry.MatchDeployments, request)
        return [
            WantedBy(
                deployment.name,
                convert.targets_of(deployment),
                convert.gate_from_proto(deployment.gate),
                convert.recipe_from_proto(deployment.recipe),
                convert.task_from_proto(deployment.task),
            )
            for deployment in response.deployments
        ]


class FinishedCheckpoints:
    """``app.Checkpoints`` over gRPC: those of all training runs and all tuning jobs."""

    def __init__(
        self, trainer: trainer_grpc.TrainerServiceStub, tuner: tuner_grpc.TunerServiceStub
    ) -> None:
        self._trainer = trainer
        self._tuner = tuner

    @classmethod
    def at(cls, trainer: str, tuner: str, token: str | None) -> "FinishedCheckpoints":
        return cls(
            trainer_grpc.TrainerServiceStub(open_channel(trainer, token)),
            tuner_grpc.TunerServiceStub(open_channel(tuner, token)),
        )

    def all(self) -> Iterator[tuple[str, Checkpoint, datetime]]:
        for found in _pages(
            self._trainer.ListCheckpoints,
            lambda token: trainer_pb2.ListCheckpointsRequest(
                parent="tenants/-/runs/-", page_size=_PAGE_SIZE, page_token=token
            ),
        ):
            dataset = Content(found.evaluation.uri, found.evaluation.digest, 0)
            yield _finished(found, dataset)
        for found in _pages(
            self._tuner.ListCheckpoints,
            lambda token: tuner_pb2.ListCheckpointsRequest(
                parent="tenants/-/jobs/-", page_size=_PAGE_SIZE, page_token=token
            ),
        ):
            if not found.unserved:
                # A tuning job's held-out examples lie in the checkpoint itself.
                yield _finished(found, _content(found.content))


def neighbours(
    settings: CompressorSettings, token: str | None
) -> tuple[RegistryDeployments, FinishedCheckpoints, TunerRecoveries]:
    """All that the service asks."""
    return (
        RegistryDeployments.at(settings.registry_address, token),
        FinishedCheckpoints.at(settings.trainer_address, settings.tuner_address, token),
        TunerRecoveries.at(settings.tuner_address, token),
    )


def _finished(found: Any, evaluation: Content) -> tuple[str, Checkpoint, datetime]:
    checkpoint = Checkpoint(
        name=found.name,
        model=found.model,
        step=found.step,
        final=found.final,
        content=_content(found.content),
        evaluation=evaluation,
    )
    return names.tenant_of(found.name), checkpoint, found.create_time.ToDatetime(UTC)


def _content(content: lifecycle_pb2.Content) -> Content:
    return convert.content_from_proto(content)


def _pages(method: Callable[..., Any], request: Callable[[str], Any]) -> Iterator[Any]:
    token = ""
    while True:
        response = call(method, request(token))
        yield from response.checkpoints
        token = response.next_page_token
        if not token:
            return
