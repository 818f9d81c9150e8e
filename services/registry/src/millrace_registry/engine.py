"""Which engine serves an artifact. Its files say it: versions of one model may have different ones,
since the engines share their tensors and so Triton's configuration of the model.

An artifact that was made for an engine which the endpoint does not have becomes a version that is
registered, and is neither rolled out nor held: Triton could only fail to load it.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from millrace_registry.triton_config import ENGINE_FILES

# The files of engines/ that serve a Hugging Face checkpoint; the first becomes ``model.py``.
TRANSFORMERS_FILES = (
    "transformers_batching.py",
    "choice.py",
    "constraint.py",
    "constraint_disjoint.py",
    "delivery.py",
    "grammar_numbers.py",
    "grammar_objects.py",
    "grammar_rules.py",
    "grammar_schema.py",
    "grammar_strings.py",
    "group.py",
    "intake.py",
    "logprobs.py",
    "paged.py",
    "sampling.py",
    "stream.py",
    "text_stream.py",
    "vocabulary.py",
)
HERE = ("openvino", "transformers")
"""The engines of ``engines/``, which each endpoint has that this registry controls."""

# By how the names of the compressor's targets begin (compressor/v1/service.proto: Target).
_ENGINES: Mapping[str, str] = {
    "TARGET_AUTO": "openvino",
    "TARGET_OPENVINO_": "openvino",
    "TARGET_SAFETENSORS": "transformers",
    "TARGET_ONNX_": "onnxruntime",
    "TARGET_COMPRESSED_TENSORS_": "vllm",
    "TARGET_TENSORRT_": "tensorrt",
}
_OPENVINO_MODEL = "openvino_model.xml"
_CHECKPOINTS = ("model.safetensors", "model.safetensors.index.json")


def engine_of(artifact: Path) -> Sequence[str]:
    """The files of the engine for ``artifact``, a folder.

    What no engine knows goes to OpenVINO's, which says what it lacks when it is loaded.
    """
    is_checkpoint = any((artifact / name).exists() for name in _CHECKPOINTS)
    if is_checkpoint and not (artifact / _OPENVINO_MODEL).exists():
        return TRANSFORMERS_FILES
    return ENGINE_FILES


def engine_of_target(target: str) -> str:
    """The engine that runs what is made for ``target``, the proto's name; empty: none is known."""
    return next((engine for start, engine in _ENGINES.items() if target.startswith(start)), "")


def unserved_reason(target: str, engines: Collection[str]) -> str:
    """Why an endpoint with ``engines`` cannot serve what is made for ``target``; empty: it can."""
    engine = engine_of_target(target)
    if engine in engines:
        return ""
    return (
        f"it is not served here: it is made for {engine or target}, and this endpoint runs "
        f"{', '.join(engines)}"
    )
