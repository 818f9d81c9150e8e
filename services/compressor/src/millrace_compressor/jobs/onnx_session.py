"""An ONNX artifact through ONNX Runtime, with its key/value cache handed round by hand."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from millrace_compressor.jobs import answers
from millrace_compressor.jobs.evaluate import (
    LOAD_TOKENS,
    alone,
    load_measurement,
)
from millrace_compressor.jobs.format import Logits, Tokens
from millrace_compressor.jobs.onnx_export import MODEL_FILE

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PAST = "past_key_values."

Cache = Mapping[str, NDArray[Any]]


class Artifact:
    """``entries`` are ONNX Runtime's session options by name."""

    def __init__(
        self,
        directory: Path,
        threads: int,
        dtype: str,
        entries: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.dtype = dtype
        started = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        self._session: Any = onnxruntime.InferenceSession(
            directory / MODEL_FILE, options, providers=["CPUExecutionProvider"]
        )
        self._load_seconds = time.perf_counter() - started
        self._past = [port for port in self._session.get_inputs() if port.name.startswith(_PAST)]
        self._outputs = [port.name for port in self._session.get_outputs()]

    def logits(self, ids: NDArray[np.int64]) -> Logits:
        return self.step(ids, self.empty_cache(len(ids)))[0]

    def empty_cache(self, batch: int) -> Cache:
        """The cache before the first token: (batch, key/value heads, 0, head size) each."""
        return {
            port.name: np.zeros((batch, port.shape[1], 0, port.shape[3]), _DTYPES[port.type])
            for port in self._past
        }

    def step(self, ids: NDArray[np.int64], cache: Cache) -> tuple[Logits, Cache]:
        """The logits of ids (windows, positions) that follow ``cache``, and the cache with them."""
        past = next(iter(cache.values())).shape[2]
        rows, length = ids.shape
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, past + length), np.int64),
            "position_ids": np.tile(np.arange(past, past + length), (rows, 1)),
            **cache,
        }
        told = dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        logits = told.pop("logits")
        return logits, {name.replace("present.", _PAST): told[name] for name in told}

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        return alone(self._answer, prompt, self._load_seconds)

    def load(self, prompts: Tokens) -> dict[str, Any]:
        """Prompts (streams, positions) in one batch: a ``domain.Load`` as JSON."""
        self._answer(prompts, 2)
        return load_measurement(len(prompts), *self._answer(prompts, LOAD_TOKENS))

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        def step(ids: Tokens, cache: Cache | None) -> tuple[Tokens, Cache]:
            before = self.empty_cache(len(ids)) if cache is None else cache
            logits, after = self.step(ids, before)
            return logits[:, -1].argmax(-1), after

        return answers.with_steps(step, prompts, tokens, stops)

    def _answer(self, prompts: Tokens, tokens: int) -> tuple[float, float, float]:
        """Seconds to the first token, a token after it, and of all; greedily, in one batch."""
        ids, cache = prompts, self.empty_cache(len(prompts))
        started, moments = time.perf_counter(), []
        for _ in range(tokens):
            logits, cache = self.step(ids, cache)
            ids = logits[:, -1:].argmax(-1)
            moments.append(time.perf_counter() - started)
        return moments[0], (moments[-1] - moments[0]) / (tokens - 1), moments[-1]
