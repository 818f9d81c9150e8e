"""Files of a Triton model on the TensorRT backend, from an engine of a graph with its cache
outside. Pure.

    <model>/config.pbtxt             the engine's tensors, its profiles, how it is batched
    <model>/<version>/model.plan     the engine, built for this kind of GPU

The backend: https://github.com/triton-inference-server/tensorrt_backend/tree/r25.12
The compressor builds an engine with two profiles: 0 for prompts, whose past is empty, and 1 for
each token after them. Each instance group has both, and Triton takes the one that fits a request.
"""

from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry.triton_config import print_config
from millrace_registry.triton_onnxruntime import (
    CausalShape,
    add_batching,
    add_instances,
    add_tensors,
)

MODEL_FILES = ("model.plan",)
PROFILES = ("0", "1")


@dataclass(frozen=True)
class PlanModel:
    """One model on one Triton endpoint, with the numbers of its versions.

    ``max_batch_size`` is at most what the engine's profiles have; ``cuda_graphs``: launches are
    recorded, which helps small batches and takes memory.
    """

    name: str
    versions: tuple[int, ...]
    shape: CausalShape
    instances: int = 1
    max_batch_size: int = 16
    queue_delay_microseconds: int = 500
    cuda_graphs: bool = False


def config(model: PlanModel) -> pb.ModelConfig:
    """``config.pbtxt``.

    Raises:
        ValueError: naming what Triton would not take.
    """
    made = pb.ModelConfig(
        name=model.name,
        platform="tensorrt_plan",
        backend="tensorrt",
        default_model_filename=MODEL_FILES[0],
        max_batch_size=model.max_batch_size,
    )
    made.version_policy.specific.versions.extend(sorted(model.versions))
    add_tensors(made, model.shape)
    add_instances(made, model.instances, on_gpu=True)
    made.instance_group[0].profile.extend(PROFILES)
    add_batching(made, model.max_batch_size, model.queue_delay_microseconds)
    made.optimization.cuda.graphs = model.cuda_graphs
    return made


def render(model: PlanModel) -> dict[str, bytes]:
    """The files by their path in the model repository, but for the engine itself.

    Raises:
        ValueError: naming what Triton would not take.
    """
    return {f"{model.name}/config.pbtxt": print_config(config(model)).encode()}
