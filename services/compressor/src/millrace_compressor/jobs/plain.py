"""A checkpoint as an artifact: its own weights, byte for byte, for engines of safetensors."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from millrace_compressor.jobs import answers
from millrace_compressor.jobs.evaluate import (
    LOAD_TOKENS,
    alone,
    load_measurement,
)
from millrace_compressor.jobs.format import Conversion, Logits, Tokens
from millrace_runtime.jobs import JobError

WEIGHTS = "*.safetensors"
# Nothing else goes along: neither pickles nor code that a checkpoint may carry.
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
)


def convert(model: Path, output: Path) -> None:
    """Copy the model in ``model`` (as ``save_pretrained`` leaves it) to ``output``.

    Raises:
        JobError: CHECKPOINT_INVALID, when it has no weights that can be read.
    """
    weights = sorted(model.glob(WEIGHTS))
    if not weights:
        raise JobError("CHECKPOINT_INVALID", "the checkpoint has no weights in safetensors")
    output.mkdir(parents=True, exist_ok=True)
    for path in [*weights, *(model / name for name in _FILES)]:
        if path.exists():
            shutil.copyfile(path, output / path.name)


def inspect(output: Path) -> dict[str, float]:
    """Check that every file of weights can be read; return the share of the elements by precision.

    Raises:
        JobError: CHECKPOINT_INVALID, naming the file.
    """
    counts: Counter[str] = Counter()
    for path in sorted(output.glob(WEIGHTS)):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise JobError("CHECKPOINT_INVALID", f"{path.name}: {error}") from error
        if not tensors:
            raise JobError("CHECKPOINT_INVALID", f"{path.name} has no tensors")
        for tensor in tensors.values():
            counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return {precision: count / counts.total() for precision, count in counts.items()}


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(WEIGHTS))


def read_model(directory: Path) -> Any:
    """In the precision that it is kept in."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", local_files_only=True, use_safetensors=True
    )


class Plain:
    """The format ``safetensors``, run by transformers."""

    def convert(self, conversion: Conversion, output: Path) -> None:
        convert(conversion.model, output)

    def inspect(self, output: Path) -> Mapping[str, float]:
        return inspect(output)

    def size_bytes(self, output: Path) -> int:
        return size_bytes(output)

    def open(self, output: Path, threads: int) -> "Artifact":
        return Artifact(output)

    def exact(self, output: Path, threads: int) -> "Artifact":
        return Artifact(output)


class Artifact:
    """The artifact in its own precision, through transformers, as its engine runs it."""

    def __init__(self, directory: Path, read: Callable[[Path], Any] = read_model) -> None:
        started = time.perf_counter()
        self._model = read(directory)
        self.load_seconds = time.perf_counter() - started

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def logits(self, ids: NDArray[np.int64]) -> Logits:
        out: Logits = self._model(input_ids=torch.from_numpy(ids)).logits.float().numpy()
        return out

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        return alone(self._answer, prompt, self.load_seconds)

    def load(self, prompts: Tokens) -> dict[str, Any]:
        """Prompts (streams, positions) in one batch: a ``domain.Load`` as JSON."""
        self._answer(prompts, 2)
        return load_measurement(len(prompts), *self._answer(prompts, LOAD_TOKENS))

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        return answers.with_transformers(self._model, prompts, tokens, stops)

    @torch.inference_mode()
    def _answer(self, prompts: Tokens, tokens: int) -> tuple[float, float, float]:
        """Seconds to the first token, a token after it, and of all; greedily, in one batch."""
        ids, cache, moments = torch.from_numpy(prompts), None, []
        started = time.perf_counter()
        for _ in range(tokens):
            told = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = told.logits[:, -1:].argmax(-1), told.past_key_values
            moments.append(time.perf_counter() - started)
        return moments[0], (moments[-1] - moments[0]) / (tokens - 1), moments[-1]
