"""Measure an artifact against the checkpoint it was made from, on the same held-out windows."""

import json
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import openvino
import openvino_genai
import torch
from numpy.typing import NDArray
from openvino_genai.py_openvino_genai import GenerationStatus
from transformers import AutoModelForCausalLM

from millrace_compressor.jobs import answers
from millrace_compressor.jobs.format import Logits, Runnable, Scored, Tokens
from millrace_compressor.jobs.graphs import MODEL_FILE
from millrace_runtime.jobs import JobError

_WINDOWS_AT_ONCE = 4
LATENCY_TOKENS = 24
LATENCY_RUNS = 3
LATENCY_PROMPT_TOKENS = 32
# Under load: each of so many streams writes so many tokens, once. Few, as it is done to each
# artifact; the machine's own work on 16 streams is what is seen, not its tail.
LOAD_STREAMS = 16
LOAD_TOKENS = 16
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


def context_length(model: Path) -> int:
    """How many tokens the model's positions are for."""
    return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])


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

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        return answers.with_transformers(self._model, prompts, tokens, stops)


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
        self._properties = {"INFERENCE_NUM_THREADS": threads, **properties}
        self._served: Served | None = None

    @cached_property
    def _request(self) -> Any:
        """Compiled when it is first asked for logits: what serves is measured without it."""
        compiled = openvino.Core().compile_model(
            self._directory / MODEL_FILE, "CPU", self._properties
        )
        return compiled.create_infer_request()

    def logits(self, ids: NDArray[np.int64]) -> Logits:
        windows, length = ids.shape
        self._request.reset_state()
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((windows, length), np.int64),
            "position_ids": np.tile(np.arange(length), (windows, 1)),
            "beam_idx": np.arange(windows, dtype=np.int32),
        }
        taken = {port.get_any_name() for port in self._request.get_compiled_model().inputs}
        self._request.infer({name: inputs[name] for name in taken})
        return np.array(self._request.get_tensor("logits").data)

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        self._served = Served(self._directory, self._threads)
        return self._served.latency(prompt)

    def load(self, prompts: Tokens) -> dict[str, Any]:
        return self._serving().load(prompts)

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        return self._serving().answer(prompts, tokens, stops)

    def _serving(self) -> "Served":
        if self._served is None:
            self._served = Served(self._directory, self._threads)
        return self._served


@runtime_checkable
class UnderLoad(Protocol):
    """A ``Runnable`` that can answer several prompts at the same time."""

    def load(self, prompts: Tokens) -> dict[str, Any]:
        """Answer prompts (streams, positions) together: a ``domain.Load`` as JSON."""
        ...


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
    """Load time, and the medians of the first token's and each further token's time."""
    return Served(directory, threads).latency(prompt)


class Served:
    """An artifact in ContinuousBatchingPipeline, the engine that will serve it."""

    def __init__(self, directory: Path, threads: int) -> None:
        started = time.perf_counter()
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(directory),
            openvino_genai.SchedulerConfig(),
            "CPU",
            {"INFERENCE_NUM_THREADS": threads},
        )
        self._load_seconds = time.perf_counter() - started

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        return alone(self._answer, prompt, self._load_seconds)

    def load(self, prompts: Tokens) -> dict[str, Any]:
        self._answer(prompts, 2)  # its shapes are compiled at their first use
        first, each, total = self._answer(prompts, LOAD_TOKENS)
        return load_measurement(len(prompts), first, each, total)

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        return answers.with_pipeline(self._pipeline, prompts, tokens, stops)

    def _answer(self, prompts: Tokens, tokens: int) -> tuple[float, float, float]:
        """Medians over prompts of the seconds to the first token and of those a token after it;
        and the seconds that all took."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        started = time.perf_counter()
        handles = [
            self._pipeline.add_request(number, openvino.Tensor(prompt[None].copy()), config)
            for number, prompt in enumerate(prompts)
        ]
        firsts, ends = dict[int, float](), dict[int, float]()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter() - started
            for number, handle in enumerate(handles):
                if handle.can_read():
                    firsts.setdefault(number, now)
                if handle.get_status() == GenerationStatus.FINISHED:
                    ends.setdefault(number, now)
        each = [(ends[number] - first) / (tokens - 1) for number, first in firsts.items()]
        return float(np.median([*firsts.values()])), float(np.median(each)), max(ends.values())


def alone(
    answer: Callable[[Tokens, int], tuple[float, float, float]],
    prompt: NDArray[np.int64],
    load_seconds: float,
) -> dict[str, Any]:
    """``Runnable.latency``: load time, and the medians of the first token's and each further one's.

    Args:
        answer: (prompts, tokens) -> seconds to the first token, a token after it, and of all.
    """
    asked = prompt[None, :LATENCY_PROMPT_TOKENS]
    runs = [answer(asked, LATENCY_TOKENS) for _ in range(LATENCY_RUNS + 1)][1:]
    first, each = np.median([run[:2] for run in runs], axis=0).tolist()
    return {
        "load_seconds": load_seconds,
        "first_token_seconds": first,
        "token_seconds": each,
    }


def load_measurement(streams: int, first: float, each: float, total: float) -> dict[str, Any]:
    """``service.proto``'s LoadMeasurement, of streams that wrote ``LOAD_TOKENS`` tokens each."""
    return {
        "streams": streams,
        "tokens_per_second": streams * LOAD_TOKENS / total,
        "first_token_seconds": first,
        "token_seconds": each,
    }


def loads(artifact: Runnable, windows: Tokens, alone: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Speed at one stream, as ``latency`` measured it, and at ``LOAD_STREAMS`` where it can."""
    first, each = alone["first_token_seconds"], alone["token_seconds"]
    if first is None or each is None:
        return []
    one = load_measurement(1, first, each, first + (LOAD_TOKENS - 1) * each)
    if not isinstance(artifact, UnderLoad):
        return [one]
    return [one, artifact.load(prompts(windows, LOAD_STREAMS))]


def prompts(windows: Tokens, streams: int) -> Tokens:
    """So many prompts of held-out text; the same ones again where there is too little of it."""
    return np.resize(windows, (streams, min(LATENCY_PROMPT_TOKENS, windows.shape[1])))


class Memory:
    """The most that is in use while a model is loaded and run, beyond what was before.

    The kernel keeps the peak of a process and lets it be set back (``man 5 proc``: clear_refs).
    """

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # the kernel does not let it: then nothing is said
            self._before = None
        else:
            self._before = _resident_bytes("VmRSS")

    def peak_bytes(self) -> int | None:
        """Since this was made; None where the kernel does not say."""
        peak = _resident_bytes("VmHWM")
        return None if peak is None or self._before is None else max(peak - self._before, 0)


def _resident_bytes(field: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def peak_memory_bytes() -> int:
    """This process's peak resident set (getrusage reports KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
