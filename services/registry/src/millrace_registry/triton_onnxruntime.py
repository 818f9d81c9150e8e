"""Files of a Triton model on the ONNX Runtime backend, from a graph with its cache outside. Pure.

    <model>/config.pbtxt                 the graph's tensors, how it is batched and run
    <model>/<version>/model.onnx         the graph, and ``model.onnx.data``: its weights

The backend: https://github.com/triton-inference-server/onnxruntime_backend/tree/r25.12
Who asks hands the cache round: ``present.N.key`` of one answer is ``past_key_values.N.key`` of
the next request. A first request has a past of 0 positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry.triton_config import print_config

MODEL_FILES = ("model.onnx", "model.onnx.data")
CACHE_TYPES = {"float32": pb.TYPE_FP32, "float16": pb.TYPE_FP16}
# Where each accelerator of the backend runs (its README: "Optimization").
ACCELERATORS = {"openvino": "cpu", "tensorrt": "gpu", "cuda": "gpu"}
_VARIES = -1


@dataclass(frozen=True)
class CausalShape:
    """What of a causal language model's shape its tensors show; ``dtype``: of its cache."""

    layers: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    dtype: str = "float32"

    @classmethod
    def of(cls, config: Mapping[str, Any], dtype: str = "float32") -> "CausalShape":
        """From transformers' ``config.json``.

        Raises:
            KeyError: it is not that of a causal language model.
        """
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            dtype=dtype,
        )


@dataclass(frozen=True)
class OnnxModel:
    """One model on one Triton endpoint, with the numbers of its versions.

    ``accelerator`` "" leaves products to the backend's own kernels. ``threads`` of one instance;
    0: all cores.
    """

    name: str
    versions: tuple[int, ...]
    shape: CausalShape
    on_gpu: bool = False
    accelerator: str = ""
    instances: int = 1
    threads: int = 0
    max_batch_size: int = 16
    queue_delay_microseconds: int = 500


def config(model: OnnxModel) -> pb.ModelConfig:
    """``config.pbtxt``.

    Raises:
        ValueError: naming what Triton or the backend would not take.
    """
    made = pb.ModelConfig(
        name=model.name,
        backend="onnxruntime",
        default_model_filename=MODEL_FILES[0],
        max_batch_size=model.max_batch_size,
    )
    made.version_policy.specific.versions.extend(sorted(model.versions))
    add_tensors(made, model.shape)
    add_instances(made, model.instances, model.on_gpu)
    add_batching(made, model.max_batch_size, model.queue_delay_microseconds)
    _accelerate(made, model)
    # A session has threads of its own: many instances with all cores each would wait for another.
    made.parameters["intra_op_thread_count"].string_value = str(model.threads)
    made.parameters["inter_op_thread_count"].string_value = "1"
    return made


def render(model: OnnxModel) -> dict[str, bytes]:
    """The files by their path in the model repository, but for the graph's own.

    Raises:
        ValueError: naming what Triton or the backend would not take.
    """
    return {f"{model.name}/config.pbtxt": print_config(config(model)).encode()}


def add_tensors(made: pb.ModelConfig, shape: CausalShape) -> None:
    """The inputs and outputs of the graph, without the batch that Triton adds in front.

    Raises:
        ValueError: naming the field of ``shape``.
    """
    for field in ("layers", "key_value_heads", "head_size", "vocabulary"):
        if getattr(shape, field) < 1:
            raise ValueError(f"{field}: must be positive, not {getattr(shape, field)}")
    if shape.dtype not in CACHE_TYPES:
        raise ValueError(f"dtype: must be one of {', '.join(CACHE_TYPES)}, not {shape.dtype!r}")
    for name in ("input_ids", "attention_mask", "position_ids"):
        made.input.add(name=name, data_type=pb.TYPE_INT64, dims=[_VARIES])
    made.output.add(name="logits", data_type=pb.TYPE_FP32, dims=[_VARIES, shape.vocabulary])
    cache = {
        "data_type": CACHE_TYPES[shape.dtype],
        "dims": [shape.key_value_heads, _VARIES, shape.head_size],
    }
    for layer in range(shape.layers):
        for kind in ("key", "value"):
            made.input.add(name=f"past_key_values.{layer}.{kind}", **cache)
            made.output.add(name=f"present.{layer}.{kind}", **cache)


def add_instances(made: pb.ModelConfig, count: int, on_gpu: bool) -> None:
    """
    Raises:
        ValueError: there is to be no instance.
    """
    if count < 1:
        raise ValueError(f"instances: must be positive, not {count}")
    kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
    made.instance_group.add(count=count, kind=kind)


def add_batching(made: pb.ModelConfig, most: int, delay_microseconds: int) -> None:
    """Requests of the same shapes that come within the delay are computed together.

    Raises:
        ValueError: naming what is not positive.
    """
    if most < 1:
        raise ValueError(f"max_batch_size: must be positive, not {most}")
    if delay_microseconds < 0:
        raise ValueError(f"queue_delay_microseconds: must not be negative: {delay_microseconds}")
    made.dynamic_batching.max_queue_delay_microseconds = delay_microseconds


def _accelerate(made: pb.ModelConfig, model: OnnxModel) -> None:
    if not model.accelerator:
        return
    runs_on = ACCELERATORS.get(model.accelerator)
    if runs_on is None:
        known = ", ".join(ACCELERATORS)
        raise ValueError(f"accelerator: must be one of {known}, not {model.accelerator!r}")
    if (runs_on == "gpu") != model.on_gpu:
        raise ValueError(f"accelerator: {model.accelerator} runs on a {runs_on} only")
    accelerators = made.optimization.execution_accelerators
    chosen = (
        accelerators.gpu_execution_accelerator
        if model.on_gpu
        else accelerators.cpu_execution_accelerator
    )
    chosen.add(name=model.accelerator)
