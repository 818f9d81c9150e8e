"""The targets: which fields of a recipe each has, and which engine runs what it makes. Pure.

How each is made is a file of ``jobs/``; ``jobs/formats.py`` says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace_compressor.domain import Target
from millrace_runtime.errors import InvalidArgument


@dataclass(frozen=True)
class Row:
    """``engine`` runs the artifact; ``recipe`` names the fields of ``Recipe`` that it has."""

    engine: str
    recipe: frozenset[str] = frozenset()


_CALIBRATED = frozenset({"calibration"})
_CACHE = frozenset({"kv_cache_int8"})
_GROUPS = frozenset({"group_size", "weight_method", "calibration"})

ROWS: Mapping[Target, Row] = {
    Target.OPENVINO_FP32: Row("openvino", _CACHE),
    Target.OPENVINO_INT8: Row("openvino", _CACHE),
    Target.OPENVINO_INT8_ACTIVATIONS: Row("openvino", _CACHE | _CALIBRATED),
    Target.OPENVINO_INT4: Row("openvino", _CACHE | _GROUPS),
    Target.SAFETENSORS: Row("transformers"),
    Target.SAFETENSORS_BF16: Row("transformers"),
    Target.SAFETENSORS_PRUNED: Row("transformers", _CALIBRATED | {"pruning"}),
    Target.ONNX_INT8: Row("onnxruntime", _CALIBRATED),
    Target.ONNX_INT8_DYNAMIC: Row("onnxruntime"),
    Target.COMPRESSED_TENSORS_W8A8: Row("vllm", _CALIBRATED),
    Target.COMPRESSED_TENSORS_FP8: Row("vllm"),
    Target.COMPRESSED_TENSORS_W4A16: Row("vllm", _GROUPS),
    Target.COMPRESSED_TENSORS_SPARSE_2_4: Row("vllm", _CALIBRATED),
    Target.TENSORRT_FP16: Row("tensorrt"),
    Target.TENSORRT_INT8: Row("tensorrt", _CALIBRATED),
    Target.TENSORRT_FP8: Row("tensorrt", _CALIBRATED),
    Target.AUTO: Row("openvino", _CALIBRATED),
}


def require_taken(target: Target, recipe: Mapping[str, Any]) -> None:
    """
    Raises:
        InvalidArgument: the recipe says what the target does not have.
    """
    for field in recipe:
        if field not in ROWS[target].recipe:
            raise InvalidArgument(
                f"the target {target.value} has no {field!r}", field=f"recipe.{field}"
            )


def narrowed(target: Target, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a deployment's recipe says of one of its targets."""
    return {field: value for field, value in recipe.items() if field in ROWS[target].recipe}
