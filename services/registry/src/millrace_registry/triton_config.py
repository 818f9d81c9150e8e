"""Triton model configurations, built as protobuf and printed, never templated.

The schema and what each field means:
https://github.com/triton-inference-server/common/blob/r24.10/protobuf/model_config.proto
https://github.com/triton-inference-server/server/blob/r24.10/docs/user_guide/model_configuration.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry.domain import Serving

# The files of engines/ that make up one model version; the first becomes ``model.py``.
ENGINE_FILES = (
    "openvino_genai.py",
    "constraint.py",
    "constraint_disjoint.py",
    "delivery.py",
    "embedder.py",
    "embedding.py",
    "forward.py",
    "grammar.py",
    "grammar_numbers.py",
    "grammar_objects.py",
    "grammar_rules.py",
    "grammar_schema.py",
    "grammar_strings.py",
    "group.py",
    "head.py",
    "intake.py",
    "logprobs.py",
    "sampler.py",
    "sampling.py",
    "scorer.py",
    "stream.py",
    "text_stream.py",
)
REQUIRED_INPUTS = {"sampling": pb.TYPE_STRING}
OPTIONAL_INPUTS = {"prompt": pb.TYPE_STRING, "input_ids": pb.TYPE_INT64}
OUTPUTS = {
    "text": pb.TYPE_STRING,
    "token_count": pb.TYPE_INT32,
    "finish_reason": pb.TYPE_STRING,
    "logprobs": pb.TYPE_STRING,
    "prompt_token_count": pb.TYPE_INT32,
    "timing": pb.TYPE_STRING,
    "prompt_logprobs": pb.TYPE_STRING,
    "batch": pb.TYPE_STRING,
}
# Theirs are shapes of their own.
VECTOR_OUTPUTS = {
    "embedding": (pb.TYPE_FP32, [-1, -1]),
    "embedding_index": (pb.TYPE_INT32, [-1]),
}


@dataclass(frozen=True)
class EngineSettings:
    """How much of the machine one model version may use.

    The first three are GenAI's SchedulerConfig; ``threads`` is OpenVINO's INFERENCE_NUM_THREADS
    (0: all cores).
    https://docs.openvino.ai/2025/api/genai_api/_autosummary/openvino_genai.SchedulerConfig.html
    https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
    """

    cache_gibibytes: int = 1
    max_batched_tokens: int = 512
    max_sequences: int = 64
    threads: int = 0


def generation_config(
    name: str, versions: Sequence[int], settings: EngineSettings, serving: Serving = Serving()
) -> pb.ModelConfig:
    """The configuration of a text-generation model on the OpenVINO GenAI engine.

    Decoupled, since one request has many responses:
    https://github.com/triton-inference-server/server/blob/r24.10/docs/user_guide/decoupled_models.md
    ``versions`` are served side by side. Rewriting the list and loading the model again starts and
    drains only the versions that differ, as long as nothing else in the configuration changes.
    https://github.com/triton-inference-server/server/blob/r24.10/docs/user_guide/model_management.md
    Parameters reach ``initialize`` as strings:
    https://github.com/triton-inference-server/python_backend/tree/r24.10#initialize

    Of what a deployment says, ``instance_count`` makes the instance group, and ``max_batch_size``
    the engine's own batch, which requests join and leave in flight; ``threads`` and
    ``cache_gibibytes`` are those of each engine. The configuration's
    max_batch_size stays 0, since no tensor has a batch dimension, and there is no dynamic_batching:
    the engine takes every request at once, so that nothing waits in Triton to be batched, ordered
    by priority or refused. What waits does so in the gateway (deploy/adr/0010-serving.md).
    """
    settings = _as_deployed(settings, serving)
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=0)
    config.version_policy.specific.versions.extend(versions)
    config.model_transaction_policy.decoupled = True
    count = serving.instance_count or 1
    config.instance_group.add(count=count, kind=pb.ModelInstanceGroup.KIND_CPU)
    for tensor, kind in REQUIRED_INPUTS.items():
        config.input.add(name=tensor, data_type=kind, dims=[1])
    for tensor, kind in OPTIONAL_INPUTS.items():
        dims = [-1] if kind == pb.TYPE_INT64 else [1]
        config.input.add(name=tensor, data_type=kind, dims=dims, optional=True)
    for tensor, kind in OUTPUTS.items():
        config.output.add(name=tensor, data_type=kind, dims=[1])
    for tensor, (kind, shape) in VECTOR_OUTPUTS.items():
        config.output.add(name=tensor, data_type=kind, dims=shape)
    for key in EngineSettings.__dataclass_fields__:
        config.parameters[key].string_value = str(getattr(settings, key))
    return config


def _as_deployed(settings: EngineSettings, serving: Serving) -> EngineSettings:
    said = {
        "max_sequences": serving.max_batch_size,
        "threads": serving.threads,
        "cache_gibibytes": serving.cache_gibibytes,
    }
    return replace(settings, **{name: value for name, value in said.items() if value is not None})


def print_config(config: pb.ModelConfig) -> str:
    """The text of ``config.pbtxt``."""
    return text_format.MessageToString(config)


def engine_files(names: Sequence[str] = ENGINE_FILES) -> dict[str, bytes]:
    """What a version's folder holds beside the artifact, by name; the first is ``model.py`` there.

    Triton reloads a version whose folder has changed, and Python changes it by writing bytecode
    there. An empty file where the cache folder would be prevents that.
    """
    source = resources.files("millrace_registry") / "engines"
    first = {names[0]: "model.py"}
    files = {first.get(name, name): (source / name).read_bytes() for name in names}
    return {**files, "__pycache__": b""}


def write_engine(version_folder: Path, names: Sequence[str] = ENGINE_FILES) -> None:
    """Write an engine's files into ``<repository>/<model>/<version>``."""
    for name, content in engine_files(names).items():
        (version_folder / name).write_bytes(content)
