"""The model's logits, exactly: a second, stateful compilation of the artifact's IR.

GenAI's pipeline keeps its logits to itself. This one runs the same weights in float32, with a
float32 key/value cache and no quantised activations, and shows every position's, and their hidden
states. OpenVINO leaves other threads the interpreter while it infers.

Free of imports from this package, because the file is copied beside ``model.py`` into the Triton
repository.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from head import HIDDEN, SCORED, open_up

MODEL_FILE = "openvino_model.xml"
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


class Forward:
    """Compiled when first used. For several threads, each with continuations of its own."""

    def __init__(self, artifact: Path, threads: int) -> None:
        self._path = artifact / MODEL_FILE
        self._properties = {"INFERENCE_NUM_THREADS": threads, **EXACT}
        self._lock = threading.Lock()
        self._compiled: Any = None
        self._inputs: frozenset[str] = frozenset()
        self._hidden_size = 0
        self._idle: list[Any] = []

    @property
    def hidden_size(self) -> int:
        """Of the last hidden state; 0 when the model does not show it."""
        with self._lock:
            self._compile()
        return self._hidden_size

    def open(self) -> "Continuation":
        """Begin a sequence, or several of one length; ``release`` it afterwards."""
        with self._lock:
            self._compile()
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        return Continuation(request, self._inputs)

    def release(self, continuation: "Continuation") -> None:
        """Keep what the sequence ran in for the next one, without its cache."""
        continuation.request.reset_state()
        with self._lock:
            self._idle.append(continuation.request)

    def _compile(self) -> None:
        if self._compiled is None:
            core = ov.Core()
            model = core.read_model(self._path)
            self._hidden_size = open_up(model)
            self._compiled = core.compile_model(model, "CPU", self._properties)
            self._inputs = frozenset(port.get_any_name() for port in self._compiled.inputs)


class Continuation:
    """One sequence, or several side by side, fed piece by piece."""

    def __init__(self, request: Any, inputs: frozenset[str]) -> None:
        self.request = request
        self._inputs = inputs
        self._length = 0

    def feed(self, tokens: Sequence[int]) -> Any:
        """What the model expects after each of the tokens of one sequence.

        Returns:
            Logits, float32, (len(tokens), vocabulary); valid until the next call.
        """
        self._infer(np.array([tokens], np.int64), len(tokens))
        return self.request.get_tensor("logits").data[0]

    def hidden(self, tokens: Any) -> Any:
        """What the model makes of tokens, int64 (sequences, n), before its output layer.

        Returns:
            Hidden states, float32, (sequences, n, ``hidden_size``); valid until the next call.
        """
        self._infer(tokens, 1)
        return self.request.get_tensor(HIDDEN).data

    def _infer(self, tokens: Any, scored: int) -> None:
        """Logits are made of the first ``scored`` positions."""
        count, length = tokens.shape
        end = self._length + length
        positions = np.arange(self._length, end, dtype=np.int64)
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones((count, end), np.int64),
            "position_ids": np.tile(positions, (count, 1)),
            "beam_idx": np.arange(count, dtype=np.int32),
            SCORED: np.arange(scored, dtype=np.int64),
        }
        self.request.infer({name: inputs[name] for name in self._inputs})
        self._length = end
