"""Configurations of the four Triton models that serve a TensorRT-LLM engine. Pure.

    <model>                   the ensemble, which clients ask: text in, text out
    <model>.preprocessing     text to token ids (Python, by NVIDIA's image)
    <model>.tensorrt_llm      the engine, with in-flight batching
    <model>.postprocessing    token ids to text (Python, by NVIDIA's image)

What each file must say is in NVIDIA's templates, see ``tensorrt_llm_tensors.py``; what the
parameters mean, in
https://github.com/triton-inference-server/tensorrtllm_backend/blob/v1.0.0/docs/model_config.md
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry import tensorrt_llm_tensors as tensors
from millrace_registry.triton_config import print_config

STEPS = ("preprocessing", "tensorrt_llm", "postprocessing")
# Where NVIDIA's image (tritonserver:…-trtllm-python-py3) has the code of the two Python steps.
IMAGE_MODELS = PurePosixPath("/app/all_models/inflight_batcher_llm")
EXECUTOR_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"


@dataclass(frozen=True)
class TensorRtLlmModel:
    """One engine, built by ``trtllm-build`` for one kind of GPU, and its tokenizer's folder.

    ``max_batch_size`` is at most what the engine was built for. ``gpu_memory_share`` is of what
    is free once the engine is loaded.
    """

    name: str
    version: int
    engine_folder: str
    tokenizer_folder: str
    max_batch_size: int = 64
    max_queue_size: int = 0
    queue_delay_microseconds: int = 0
    gpu_memory_share: float = 0.9
    gpu_device_ids: tuple[int, ...] = ()
    tokenizer_instances: int = 2


def render(model: TensorRtLlmModel) -> dict[str, bytes]:
    """The files by their path in the model repository.

    An ensemble and an engine have a version folder with nothing in it, which Triton asks for. The
    two ``model.py`` come from ``image_files``.

    Raises:
        ValueError: naming the setting that is out of range.
    """
    _check(model)
    configs = {model.name: ensemble_config(model)}
    makers = (preprocessing_config, engine_config, postprocessing_config)
    for step, make in zip(STEPS, makers, strict=True):
        configs[f"{model.name}.{step}"] = make(model)
    files = {f"{name}/config.pbtxt": print_config(made).encode() for name, made in configs.items()}
    for name in (model.name, f"{model.name}.tensorrt_llm"):
        files[f"{name}/{model.version}/.keep"] = b""
    return files


def image_files(model: TensorRtLlmModel) -> dict[str, PurePosixPath]:
    """What is to be copied out of NVIDIA's image, by its path in the model repository."""
    return {
        f"{model.name}.{step}/{model.version}/model.py": IMAGE_MODELS / step / "1" / "model.py"
        for step in ("preprocessing", "postprocessing")
    }


def ensemble_config(model: TensorRtLlmModel) -> pb.ModelConfig:
    made = pb.ModelConfig(name=model.name, platform="ensemble")
    _common(made, model, tensors.ENSEMBLE_INPUTS, tensors.ENSEMBLE_OUTPUTS)
    maps = (
        (tensors.PREPROCESSING_INPUT_MAP, tensors.PREPROCESSING_OUTPUT_MAP),
        (tensors.ENGINE_INPUT_MAP, tensors.ENGINE_OUTPUT_MAP),
        (tensors.POSTPROCESSING_INPUT_MAP, tensors.POSTPROCESSING_OUTPUT_MAP),
    )
    for step, (inputs, outputs) in zip(STEPS, maps, strict=True):
        added = made.ensemble_scheduling.step.add(model_name=f"{model.name}.{step}")
        added.model_version = model.version
        added.input_map.update(inputs)
        added.output_map.update(outputs)
    return made


def preprocessing_config(model: TensorRtLlmModel) -> pb.ModelConfig:
    made = pb.ModelConfig(name=f"{model.name}.preprocessing", backend="python")
    _common(made, model, tensors.PREPROCESSING_INPUTS, tensors.PREPROCESSING_OUTPUTS)
    _batching(made, model)
    made.instance_group.add(count=model.tokenizer_instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    # The chat template has put the special tokens into the text already.
    return _told(
        made,
        {
            "tokenizer_dir": model.tokenizer_folder,
            "add_special_tokens": "False",
            "gpt_model_path": model.engine_folder,
        },
    )


def engine_config(model: TensorRtLlmModel) -> pb.ModelConfig:
    """In-flight batching; a request that has begun is not put back (``guaranteed_no_evict``)."""
    made = pb.ModelConfig(name=f"{model.name}.tensorrt_llm", backend="tensorrtllm")
    _common(made, model, tensors.ENGINE_INPUTS, tensors.ENGINE_OUTPUTS)
    _batching(made, model)
    made.model_transaction_policy.decoupled = True
    # The engine itself takes the GPU.
    made.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    parameters = {
        "max_beam_width": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": model.engine_folder,
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": f"{model.gpu_memory_share:g}",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "50",
        "enable_kv_cache_reuse": "true",
        "enable_chunked_context": "true",
        "decoding_mode": "top_k_top_p",
        "executor_worker_path": EXECUTOR_WORKER,
        "tokenizer_dir": model.tokenizer_folder,
    }
    if model.gpu_device_ids:
        parameters["gpu_device_ids"] = ",".join(map(str, model.gpu_device_ids))
    return _told(made, parameters)


def postprocessing_config(model: TensorRtLlmModel) -> pb.ModelConfig:
    made = pb.ModelConfig(name=f"{model.name}.postprocessing", backend="python")
    _common(made, model, tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS)
    made.dynamic_batching.SetInParent()
    made.instance_group.add(count=model.tokenizer_instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    return _told(made, {"tokenizer_dir": model.tokenizer_folder, "skip_special_tokens": "True"})


def _check(model: TensorRtLlmModel) -> None:
    if model.max_batch_size < 1:
        raise ValueError(f"max_batch_size must be at least 1, not {model.max_batch_size}")
    if not 0 < model.gpu_memory_share <= 1:
        raise ValueError(
            f"gpu_memory_share must be above 0 and at most 1: {model.gpu_memory_share}"
        )
    if (
        len(set(model.gpu_device_ids)) < len(model.gpu_device_ids)
        or min(model.gpu_device_ids, default=0) < 0
    ):
        raise ValueError(f"gpu_device_ids must be different devices: {model.gpu_device_ids}")


def _common(
    made: pb.ModelConfig,
    model: TensorRtLlmModel,
    inputs: Mapping[str, tensors.Tensor],
    outputs: Mapping[str, tensors.Tensor],
) -> None:
    made.max_batch_size = model.max_batch_size
    made.version_policy.specific.versions.append(model.version)
    for name, (kind, dims, marks) in inputs.items():
        added = made.input.add(name=name, data_type=pb.DataType.Value(f"TYPE_{kind}"), dims=dims)
        added.optional, added.allow_ragged_batch = "o" in marks, "g" in marks
        if "r" in marks:
            added.reshape.SetInParent()
    for name, (kind, dims, _) in outputs.items():
        made.output.add(name=name, data_type=pb.DataType.Value(f"TYPE_{kind}"), dims=dims)


def _batching(made: pb.ModelConfig, model: TensorRtLlmModel) -> None:
    batching = made.dynamic_batching
    batching.preferred_batch_size.append(model.max_batch_size)
    batching.max_queue_delay_microseconds = model.queue_delay_microseconds
    batching.default_queue_policy.max_queue_size = model.max_queue_size


def _told(made: pb.ModelConfig, parameters: Mapping[str, str]) -> pb.ModelConfig:
    for name, value in parameters.items():
        made.parameters[name].string_value = value
    return made
