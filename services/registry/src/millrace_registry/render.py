"""``python -m millrace_registry.render``: a Triton model repository for NVIDIA's LLM backends,
and for those of ONNX Runtime and TensorRT.

    … vllm --name demo --version 3 --artifact DIR --output REPOSITORY [--adapter NAME=DIR …]
    … tensorrt-llm --name demo --version 3 --engine DIR --tokenizer DIR --output REPOSITORY
    … onnxruntime --name demo --version 3 --artifact DIR --output REPOSITORY [--gpu]
    … tensorrt-plan --name demo --version 3 --artifact DIR --output REPOSITORY

The paths are those that Triton will see. Serving these models through the gateway needs what
deploy/adr/0012-engines.md says.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millrace_registry import (
    triton_onnxruntime,
    triton_tensorrt_llm,
    triton_tensorrt_plan,
    triton_vllm,
)
from millrace_registry.triton_onnxruntime import ACCELERATORS, CausalShape, OnnxModel
from millrace_registry.triton_tensorrt_llm import TensorRtLlmModel
from millrace_registry.triton_tensorrt_plan import PlanModel
from millrace_registry.triton_vllm import Adapters, VllmModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; 1, with a message, when they cannot be made."""
    given = _parser().parse_args(arguments)
    try:
        files = given.render(given)
        for path, content in files.items():
            _write(given.output / path, content)
        _copy(given)
    except (ValueError, KeyError, OSError) as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m millrace_registry.render")
    backends = parser.add_subparsers(
        required=True, metavar="vllm|tensorrt-llm|onnxruntime|tensorrt-plan"
    )
    vllm = backends.add_parser("vllm", help="artifacts in safetensors")
    vllm.set_defaults(render=_vllm)
    vllm.add_argument("--artifact", type=Path, required=True, help="a folder in safetensors")
    vllm.add_argument("--adapter", action="append", default=[], help="NAME=FOLDER; repeatable")
    vllm.add_argument("--tensor-parallel", type=int, default=1, help="GPUs of one model")
    engine = backends.add_parser("tensorrt-llm", help="engines that trtllm-build made")
    engine.set_defaults(render=_tensorrt_llm)
    engine.add_argument("--engine", required=True, help="the engine's folder")
    engine.add_argument("--tokenizer", required=True, help="the tokenizer's folder")
    engine.add_argument("--max-batch-size", type=int, default=64)
    for one in (vllm, engine):
        one.add_argument("--gpu-memory-share", type=float, default=0.9)
    for one in (vllm, engine, *_graph_backends(backends)):
        one.add_argument("--name", required=True, help="the model's name on Triton")
        one.add_argument("--version", type=int, required=True)
        one.add_argument("--output", type=Path, required=True, help="Triton's model repository")
    return parser


def _graph_backends(backends: Any) -> list[argparse.ArgumentParser]:
    """Of graphs that have their cache as inputs and outputs; their files are copied."""
    onnx = backends.add_parser("onnxruntime", help="artifacts in ONNX")
    onnx.set_defaults(render=_onnxruntime, copied=triton_onnxruntime.MODEL_FILES)
    onnx.add_argument("--gpu", action="store_true", help="run on GPUs")
    onnx.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="")
    onnx.add_argument("--threads", type=int, default=0, help="of one instance; 0: all cores")
    plan = backends.add_parser("tensorrt-plan", help="engines that the compressor built")
    plan.set_defaults(render=_tensorrt_plan, copied=triton_tensorrt_plan.MODEL_FILES)
    plan.add_argument("--cuda-graphs", action="store_true", help="record launches")
    for one, dtype in ((onnx, "float32"), (plan, "float16")):
        one.add_argument("--artifact", type=Path, required=True, help="the artifact's folder")
        one.add_argument("--cache-dtype", default=dtype, help="float32 or float16")
        one.add_argument("--max-batch-size", type=int, default=16)
        one.add_argument("--instances", type=int, default=1)
    return [onnx, plan]


def _vllm(given: argparse.Namespace) -> dict[str, bytes]:
    artifact = given.artifact.resolve()
    if not any(artifact.glob("*.safetensors")):
        raise ValueError(f"{artifact} has no weights in safetensors")
    folders = dict(_named(text) for text in given.adapter)
    ranks = [_document(Path(folder) / "adapter_config.json")["r"] for folder in folders.values()]
    shape = _document(artifact / "config.json")
    model = VllmModel(
        name=given.name,
        artifacts={given.version: str(artifact)},
        context_tokens=int(shape["max_position_embeddings"]),
        quantization=shape.get("quantization_config", {}).get("quant_method", ""),
        tensor_parallel=given.tensor_parallel,
        gpu_memory_share=given.gpu_memory_share,
        adapters={given.version: Adapters(folders, max(ranks))} if folders else {},
    )
    return triton_vllm.render(model)


def _tensorrt_llm(given: argparse.Namespace) -> dict[str, bytes]:
    model = TensorRtLlmModel(
        name=given.name,
        version=given.version,
        engine_folder=given.engine,
        tokenizer_folder=given.tokenizer,
        max_batch_size=given.max_batch_size,
        gpu_memory_share=given.gpu_memory_share,
    )
    for target, source in triton_tensorrt_llm.image_files(model).items():
        print(f"from NVIDIA's image: cp {source} {given.output / target}")
    return triton_tensorrt_llm.render(model)


def _onnxruntime(given: argparse.Namespace) -> dict[str, bytes]:
    model = OnnxModel(
        name=given.name,
        versions=(given.version,),
        shape=_shape(given),
        on_gpu=given.gpu,
        accelerator=given.accelerator,
        instances=given.instances,
        threads=given.threads,
        max_batch_size=given.max_batch_size,
    )
    return triton_onnxruntime.render(model)


def _tensorrt_plan(given: argparse.Namespace) -> dict[str, bytes]:
    model = PlanModel(
        name=given.name,
        versions=(given.version,),
        shape=_shape(given),
        instances=given.instances,
        max_batch_size=given.max_batch_size,
        cuda_graphs=given.cuda_graphs,
    )
    return triton_tensorrt_plan.render(model)


def _shape(given: argparse.Namespace) -> CausalShape:
    """
    Raises:
        ValueError: the artifact has no graph, or its engine was not built.
    """
    for name in given.copied:
        if not (given.artifact / name).exists():
            raise ValueError(f"{given.artifact} has no {name}")
    return CausalShape.of(_document(given.artifact / "config.json"), given.cache_dtype)


def _copy(given: argparse.Namespace) -> None:
    """Put an artifact's own files beside what was made for them."""
    folder = given.output / given.name / str(given.version)
    for name in getattr(given, "copied", ()):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given.artifact / name, folder / name)


def _named(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise ValueError(f"--adapter must be NAME=FOLDER, not {text!r}")
    return name, str(Path(folder).resolve())


def _document(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
