"""TensorRT's engine from an ONNX graph, where TensorRT's own bindings are.

An engine is for one kind of GPU and one version of TensorRT, so the ONNX is kept beside it. The
API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace_compressor.jobs.onnx_export import MODEL_FILE
from millrace_runtime.jobs import JobError

PLAN_FILE = "model.plan"
TIMING_CACHE_FILE = "timing.cache"
ABSENT = "not built: TensorRT is not on this machine"
_NO_GPU = "not built: TensorRT finds no GPU on this machine"
_WORKSPACE_BYTES = 4 << 30


@dataclass(frozen=True)
class Profile:
    """Least, usual and most of each dimension that may vary."""

    batch: tuple[int, int, int]
    sequence: tuple[int, int, int]
    past: tuple[int, int, int]

    def shapes(self, dims: Sequence[str | int]) -> tuple[tuple[int, ...], ...]:
        """Three shapes of an input whose dimensions are named as ``onnx_export`` names them."""
        return tuple(tuple(self._extent(dim, which) for dim in dims) for which in range(3))

    def _extent(self, dim: str | int, which: int) -> int:
        named = {
            "batch": self.batch[which],
            "sequence": self.sequence[which],
            "past": self.past[which],
            "total": self.past[which] + self.sequence[which],
        }
        return dim if isinstance(dim, int) else named[dim]


def profiles(context_tokens: int, batch: int = 16) -> tuple[Profile, Profile]:
    """One for prompts, and one for each token after them."""
    usual = max(1, context_tokens // 4)
    prompts = Profile((1, 1, batch), (1, usual, context_tokens), (0, 0, 0))
    tokens = Profile((1, batch // 2 or 1, batch), (1, 1, 1), (1, usual, max(1, context_tokens - 1)))
    return prompts, tokens


def build(
    folder: Path,
    inputs: dict[str, tuple[str | int, ...]],
    made_for: Sequence[Profile],
) -> str:
    """Build ``model.plan`` from the ``model.onnx`` in ``folder``; what became of it, in words.

    ``timing.cache`` there makes a later build on the same kind of GPU fast; one is written.

    Args:
        inputs: the dimensions of each input by its name; those that vary are names.

    Raises:
        JobError: ENGINE_NOT_BUILT, with TensorRT's reasons, when it does not take the graph.
    """
    if importlib.util.find_spec("tensorrt") is None:
        return ABSENT
    trt = importlib.import_module("tensorrt")
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError):  # pybind11's, when CUDA has no device
        return _NO_GPU
    # Strongly typed: the graph's own types hold, as its Q/DQ say; TensorRT chooses none.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    _parse(trt.OnnxParser(network, logger), folder / MODEL_FILE)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    for profile in made_for:
        _add_profile(builder, config, profile, inputs)
    timing_cache = folder / TIMING_CACHE_FILE
    cached = timing_cache.read_bytes() if timing_cache.exists() else b""
    config.set_timing_cache(config.create_timing_cache(cached), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise JobError("ENGINE_NOT_BUILT", "TensorRT could not build the engine; its log says why")
    (folder / PLAN_FILE).write_bytes(plan)
    timing_cache.write_bytes(config.get_timing_cache().serialize())
    return f"built by TensorRT {trt.__version__}"


def _parse(parser: Any, path: Path) -> None:
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(str(parser.get_error(at)) for at in range(parser.num_errors))
        raise JobError("ENGINE_NOT_BUILT", f"TensorRT does not take the graph: {reasons}")


def _add_profile(
    builder: Any, config: Any, profile: Profile, inputs: dict[str, tuple[str | int, ...]]
) -> None:
    made = builder.create_optimization_profile()
    for name, dims in inputs.items():
        made.set_shape(name, *profile.shapes(dims))
    if config.add_optimization_profile(made) < 0:
        raise JobError("ENGINE_NOT_BUILT", f"TensorRT does not take the shapes of {profile}")
