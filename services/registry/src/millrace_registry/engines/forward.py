"""The model's logits, exactly: a second, stateful compilation of the artifact's IR.

GenAI's pipeline keeps its logits to itself. This one runs the same weights in float32, with a
float32 key/value cache and no quantised activations, and shows every position's. OpenVINO leaves
other threads the interpreter while it infers.

Free of imports from this package, because the file is copied beside ``model.py`` into the Triton
repository.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

MODEL_FILE = "openvino_model.xml"
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


class Forward:
    """Compiled when first used. For one thread."""

    def __init__(self, artifact: Path, threads: int) -> None:
        self._path = artifact / MODEL_FILE
        self._properties = {"INFERENCE_NUM_THREADS": threads, **EXACT}
        self._compiled: Any = None
        self._inputs: frozenset[str] = frozenset()
        self._idle: list[Any] = []

    def open(self) -> "Continuation":
        """Begin a sequence; ``release`` it afterwards."""
        if self._compiled is None:
            self._compiled = ov.Core().compile_model(self._path, "CPU", self._properties)
            self._inputs = frozenset(port.get_any_name() for port in self._compiled.inputs)
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        return Continuation(request, self._inputs)

    def release(self, continuation: "Continuation") -> None:
        """Keep what the sequence ran in for the next one, without its cache."""
        continuation.request.reset_state()
        self._idle.append(continuation.request)


class Continuation:
    """One sequence, fed piece by piece."""

    def __init__(self, request: Any, inputs: frozenset[str]) -> None:
        self.request = request
        self._inputs = inputs
        self._length = 0

    def feed(self, tokens: Sequence[int]) -> Any:
        """What the model expects after each of the tokens.

        Returns:
            Logits, float32, (len(tokens), vocabulary); valid until the next call.
        """
        end = self._length + len(tokens)
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self._length, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.request.infer({name: inputs[name] for name in self._inputs})
        self._length = end
        return self.request.get_tensor("logits").data[0]
