"""``python -m millrace_registry.render``: a Triton model repository for NVIDIA's LLM backends.

    … vllm --name demo --version 3 --artifact DIR --output REPOSITORY [--adapter NAME=DIR …]
    … tensorrt-llm --name demo --version 3 --engine DIR --tokenizer DIR --output REPOSITORY

The paths are those that Triton will see. Serving these models through the gateway needs what
deploy/adr/0012-engines.md says.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from millrace_registry import triton_tensorrt_llm, triton_vllm
from millrace_registry.triton_tensorrt_llm import TensorRtLlmModel
from millrace_registry.triton_vllm import Adapters, VllmModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; 1, with a message, when they cannot be made."""
    given = _parser().parse_args(arguments)
    try:
        files = given.render(given)
        for path, content in files.items():
            _write(given.output / path, content)
    except (ValueError, KeyError, OSError) as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m millrace_registry.render")
    backends = parser.add_subparsers(required=True, metavar="vllm|tensorrt-llm")
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
        one.add_argument("--name", required=True, help="the model's name on Triton")
        one.add_argument("--version", type=int, required=True)
        one.add_argument("--output", type=Path, required=True, help="Triton's model repository")
        one.add_argument("--gpu-memory-share", type=float, default=0.9)
    return parser


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


def _named(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise ValueError(f"--adapter must be NAME=FOLDER, not {text!r}")
    return name, str(Path(folder).resolve())


def _document(path: Path) -> dict[str, int]:
    document: dict[str, int] = json.loads(path.read_text())
    return document


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
