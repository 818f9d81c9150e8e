"""Measure an artifact against the checkpoint it was made from, on the same held-out windows."""

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import openvino
import openvino_genai
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from millrace_compressor.jobs.format import Logits, Scored
from millrace_compressor.jobs.quantize import MODEL_FILE
from millrace_runtime.jobs import JobError

_WINDOWS_AT_ONCE = 4
LATENCY_TOKENS = 24
LATENCY_RUNS = 3
LATENCY_PROMPT_TOKENS = 32
# As the engine computes log-probabilities (the registry's engines/forward.py).
EXACT = MappingProxyType(
    {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
)


def heldout_windows(directory: Path, length: int, tokens: int) -> NDArray[np.int64]:
    """The first ``tokens`` held-out tokens as (windows, length); the same for every checkpoint.

    Looks for ``heldout-*.npy`` in ``directory`` and in its ``evaluation/``.

    Raises:
        JobError: EVALUATION_DATA_MISSING, when there is not even one window of two tokens.
    """
    shards = sorted(directory.glob("heldout-*.npy")) or sorted(
        (directory / "evaluation").glob("heldout-*.npy")
    )
    read = [np.load(shard, mmap_mode="r", allow_pickle=False)[:tokens] for shard in shards]
    stream = np.concatenate(read)[:tokens] if read else np.empty(0, np.int64)
    length = min(length, len(stream))
    if length <= 1:
        raise JobError(
            "EVALUATION_DATA_MISSING",
            f"{len(stream)} held-out tokens; at least 2 are needed to measure perplexity",
        )
    count = len(stream) // length
    return stream[: count * length].reshape(count, length).astype(np.int64)


class Original:
    """The checkpoint itself, in float32."""

    def __init__(self, model: Path) -> None:
        # Leaves it in evaluation mode: there is no dropout to turn off.
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, local_files_only=True
        )

    @torch.inference_mode()
    def logits(self, ids: NDArray[np.int64]) -> Logits:
        out: Logits = self._model(input_ids=torch.from_numpy(ids)).logits.numpy()
        return out


class Artifact:
    """The artifact, through the runtime that its engine uses."""

    def __init__(
        self,
        directory: Path,
        threads: int,
        dtype: str,
        properties: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.dtype = dtype
        self._directory = directory
        self._threads = threads
        compiled = openvino.Core().compile_model(
            directory / MODEL_FILE, "CPU", {"INFERENCE_NUM_THREADS": threads, **properties}
        )
        self._request = compiled.create_infer_request()
        self._inputs = {port.get_any_name() for port in compiled.inputs}

    def logits(self, ids: NDArray[np.int64]) -> Logits:
        windows, length = ids.shape
        self._request.reset_state()
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((windows, length), np.int64),
            "position_ids": np.tile(np.arange(length), (windows, 1)),
            "beam_idx": np.arange(windows, dtype=np.int32),
        }
        self._request.infer({name: inputs[name] for name in self._inputs})
        return np.array(self._request.get_tensor("logits").data)

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        return latency(self._directory, prompt, self._threads)


def compare(original: Scored, artifact: Scored, windows: NDArray[np.int64]) -> dict[str, Any]:
    """Perplexities, mean KL(original || artifact) in nats, top-1 agreement. Not finite is None."""
    sums = np.zeros(4)  # negative log-likelihoods of both, KL, agreements
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        ids = windows[start : start + _WINDOWS_AT_ONCE]
        sums += _sums(original.logits(ids), artifact.logits(ids), ids)
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    means = sums / predicted
    return {
        "original_perplexity": _finite(np.exp(means[0])),
        "artifact_perplexity": _finite(np.exp(means[1])),
        "kl_divergence": _finite(means[2]),
        "top1_agreement": _finite(means[3]),
        "evaluated_tokens": predicted,
    }


def _sums(original: Logits, artifact: Logits, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    reference = torch.log_softmax(torch.from_numpy(original[:, :-1]), dim=-1)
    candidate = torch.log_softmax(torch.from_numpy(artifact[:, :-1]), dim=-1)
    following = torch.from_numpy(ids[:, 1:, None])
    divergence = (reference.exp() * (reference - candidate)).sum(-1)
    agree = reference.argmax(-1) == candidate.argmax(-1)
    return np.array(
        [
            -reference.gather(-1, following).double().sum().item(),
            -candidate.gather(-1, following).double().sum().item(),
            divergence.double().sum().item(),
            agree.sum().item(),
        ]
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def latency(directory: Path, prompt: NDArray[np.int64], threads: int) -> dict[str, Any]:
    """Load time, and the medians of the first token's and each further token's time.

    Through ContinuousBatchingPipeline, the engine that will serve the artifact, one stream.
    """
    started = time.perf_counter()
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(directory),
        openvino_genai.SchedulerConfig(),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads},
    )
    load_seconds = time.perf_counter() - started
    runs = [_generate(pipeline, number, prompt) for number in range(LATENCY_RUNS + 1)][1:]
    first, each = (float(np.median(column)) for column in zip(*runs, strict=True))
    return {"load_seconds": load_seconds, "first_token_seconds": first, "token_seconds": each}


def _generate(pipeline: Any, number: int, prompt: NDArray[np.int64]) -> tuple[float, float]:
    """Seconds to the first token, and seconds a token after it."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = LATENCY_TOKENS
    config.ignore_eos = True
    ids = openvino.Tensor(prompt[None, :LATENCY_PROMPT_TOKENS].copy())
    started = time.perf_counter()
    handle = pipeline.add_request(number, ids, config)
    pipeline.step()
    first = time.perf_counter() - started
    while pipeline.has_non_finished_requests():
        pipeline.step()
    total = time.perf_counter() - started
    handle.read_all()
    return first, (total - first) / (LATENCY_TOKENS - 1)


def peak_memory_bytes() -> int:
    """This process's peak resident set (getrusage reports KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
