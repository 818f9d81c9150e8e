"""Files of a Triton model on NVIDIA's vLLM backend, from artifacts in safetensors. Pure.

    <model>/config.pbtxt                 the tensors that the backend has, and the versions
    <model>/<version>/model.json         arguments of vLLM's engine
    <model>/<version>/multi_lora.json    adapters by name, when there are any

The backend: https://github.com/triton-inference-server/vllm_backend/tree/r25.12
What ``model.json`` may say is in ``vllm_engine_args.schema.json``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jsonschema
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry.triton_config import print_config

# What the backend would add by itself, if it were let (``auto_complete_config`` in its model.py).
REQUIRED_INPUT = "text_input"
OPTIONAL_INPUTS = {
    "image": (pb.TYPE_STRING, [-1]),
    "stream": (pb.TYPE_BOOL, [1]),
    "sampling_parameters": (pb.TYPE_STRING, [1]),
    "exclude_input_in_output": (pb.TYPE_BOOL, [1]),
    "return_finish_reason": (pb.TYPE_BOOL, [1]),
    "return_cumulative_logprob": (pb.TYPE_BOOL, [1]),
    "return_logprobs": (pb.TYPE_BOOL, [1]),
    "return_num_input_tokens": (pb.TYPE_BOOL, [1]),
    "return_num_output_tokens": (pb.TYPE_BOOL, [1]),
    "embedding_request": (pb.TYPE_STRING, [1]),
}
OUTPUTS = {
    "text_output": (pb.TYPE_STRING, [-1]),
    "finish_reason": (pb.TYPE_STRING, [-1]),
    "cumulative_logprob": (pb.TYPE_FP32, [-1]),
    "logprobs": (pb.TYPE_STRING, [-1]),
    "num_input_tokens": (pb.TYPE_UINT32, [1]),
    "num_output_tokens": (pb.TYPE_UINT32, [-1]),
}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters of one base: folder by name, as requests call them (``lora_name``).

    ``largest_rank`` of them all; vLLM keeps room for the next rank that it knows.
    """

    folders: Mapping[str, str]
    largest_rank: int
    at_once: int = 4


@dataclass(frozen=True)
class VllmModel:
    """One model on one Triton endpoint; ``artifacts`` are folders in safetensors, by version.

    ``quantization`` "" leaves it to what the artifact's own config.json says.
    """

    name: str
    artifacts: Mapping[int, str]
    context_tokens: int
    dtype: str = "auto"
    quantization: str = ""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpu_memory_share: float = 0.9
    max_sequences: int = 64
    max_batched_tokens: int = 8192
    adapters: Mapping[int, Adapters] = field(default_factory=dict)


def render(model: VllmModel) -> dict[str, bytes]:
    """The files by their path in the model repository.

    Raises:
        ValueError: naming the argument that vLLM would not take.
    """
    files = {f"{model.name}/config.pbtxt": print_config(config(model)).encode()}
    for version, artifact in model.artifacts.items():
        folder, adapters = f"{model.name}/{version}", model.adapters.get(version)
        files[f"{folder}/model.json"] = _document(engine_arguments(model, artifact, adapters))
        if adapters:
            files[f"{folder}/multi_lora.json"] = _document(dict(adapters.folders))
    return files


def config(model: VllmModel) -> pb.ModelConfig:
    """``config.pbtxt``; KIND_MODEL leaves the choice of devices to vLLM."""
    made = pb.ModelConfig(name=model.name, backend="vllm", max_batch_size=0)
    made.version_policy.specific.versions.extend(sorted(model.artifacts))
    made.model_transaction_policy.decoupled = True
    made.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_MODEL)
    made.input.add(name=REQUIRED_INPUT, data_type=pb.TYPE_STRING, dims=[1])
    for name, (kind, dims) in OPTIONAL_INPUTS.items():
        made.input.add(name=name, data_type=kind, dims=dims, optional=True)
    for name, (kind, dims) in OUTPUTS.items():
        made.output.add(name=name, data_type=kind, dims=dims)
    made.parameters["REPORT_CUSTOM_METRICS"].string_value = "true"
    return made


def engine_arguments(model: VllmModel, artifact: str, adapters: Adapters | None) -> dict[str, Any]:
    """``model.json`` of one version.

    Cached prefixes are found by SHA-256: with a hash that can be made to collide, one tenant
    could be answered from another's prompt.

    Raises:
        ValueError: naming the argument that vLLM would not take.
    """
    arguments: dict[str, Any] = {
        "model": artifact,
        "dtype": model.dtype,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "max_model_len": model.context_tokens,
        "tensor_parallel_size": model.tensor_parallel,
        "pipeline_parallel_size": model.pipeline_parallel,
        "gpu_memory_utilization": model.gpu_memory_share,
        "max_num_seqs": model.max_sequences,
        "max_num_batched_tokens": model.max_batched_tokens,
        "max_logprobs": 20,
        "enable_prefix_caching": True,
        "prefix_caching_hash_algo": "sha256",
        "enable_chunked_prefill": True,
        "disable_log_stats": False,
        "enable_log_requests": False,
    }
    if model.quantization:
        arguments["quantization"] = model.quantization
    if adapters:
        arguments |= _lora(adapters)
    check_arguments(arguments)
    return arguments


def _lora(adapters: Adapters) -> dict[str, Any]:
    rank = next((rank for rank in LORA_RANKS if rank >= adapters.largest_rank), None)
    if rank is None or adapters.largest_rank < 1:
        raise ValueError(f"max_lora_rank: vLLM has none for rank {adapters.largest_rank}")
    return {
        "enable_lora": True,
        "max_loras": adapters.at_once,
        "max_lora_rank": rank,
        "max_cpu_loras": max(adapters.at_once, len(adapters.folders)),
    }


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Hold arguments against the schema.

    Raises:
        ValueError: naming the argument.
    """
    checker = jsonschema.Draft202012Validator(arguments_schema())
    for error in checker.iter_errors(dict(arguments)):
        where = ".".join(map(str, error.absolute_path)) or "model.json"
        raise ValueError(f"{where}: {error.message}")


def arguments_schema() -> dict[str, Any]:
    file = resources.files("millrace_registry") / "vllm_engine_args.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text())
    return schema


def _document(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
