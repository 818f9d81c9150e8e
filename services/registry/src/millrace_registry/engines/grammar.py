"""Whether a grammar compiles, tried where a bad one breaks nothing.

ContinuousBatchingPipeline compiles a grammar in ``step``, and one that does not compile leaves it
unusable for every request. So each new grammar is compiled first for a model without weights, of
the same vocabulary, whose pipeline outlives the error.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import hashlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

# It is compiled again in the pipeline that serves everybody, who wait as long.
LONGEST_COMPILATION_SECONDS = 5.0
REMEMBERED = 1024


class GrammarCheck:
    """Asks each grammar once. Compiling leaves other threads the interpreter."""

    def __init__(self, artifact: Path, vocabulary_size: int) -> None:
        self._artifact = artifact
        self._vocabulary_size = vocabulary_size
        self._lock = threading.Lock()
        self._pipeline: Any = None
        self._refusals: dict[bytes, str] = {}

    def is_known(self, kind: str, text: str) -> bool:
        return _digest(kind, text) in self._refusals

    def refusal(self, kind: str, text: str) -> str:
        """Why the engine does not take the grammar, "" when it does.

        ``kind`` is an option of StructuredOutputConfig.
        """
        digest = _digest(kind, text)
        with self._lock:
            if digest not in self._refusals:
                if len(self._refusals) >= REMEMBERED:
                    self._refusals.pop(next(iter(self._refusals)))
                self._refusals[digest] = self._try(kind, text)
            return self._refusals[digest]

    def _try(self, kind: str, text: str) -> str:
        if self._pipeline is None:
            logits = np.zeros(self._vocabulary_size, np.float32)
            self._pipeline = start_flat(self._artifact, logits)
        config = genai.GenerationConfig(max_new_tokens=1, apply_chat_template=False)
        config.structured_output_config = structured(kind, text)
        began = time.monotonic()
        try:
            self._pipeline.generate(ov.Tensor(np.zeros((1, 1), np.int64)), config)
        except RuntimeError as error:
            return _reason(str(error))
        if time.monotonic() - began > LONGEST_COMPILATION_SECONDS:
            return f"it takes longer than {LONGEST_COMPILATION_SECONDS:g} s to compile"
        return ""


def _digest(kind: str, text: str) -> bytes:
    """A grammar may be large, and many are remembered."""
    return hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).digest()


def structured(kind: str, text: str) -> Any:
    return genai.StructuredOutputConfig(**{kind: text})


def start_flat(artifact: Path, flat: Any) -> Any:
    """A pipeline with the artifact's tokenizer around a model whose logits never change.

    ``flat`` are those: float32, one a token of the vocabulary.
    """
    names = {"input_ids": np.int64, "attention_mask": np.int64, "beam_idx": np.int32}
    inputs = {
        name: ops.parameter([-1] if name == "beam_idx" else [-1, -1], kind, name=name)
        for name, kind in names.items()
    }
    for name, node in inputs.items():
        node.output(0).set_names({name})
    size = ops.constant(np.array([flat.size], np.int64))
    shape = ops.concat([ops.shape_of(inputs["input_ids"]), size], 0)
    logits = ops.broadcast(ops.constant(flat), shape)
    logits.output(0).set_names({"logits"})
    model = ov.Model([ops.result(logits)], list(inputs.values()), "flat")
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "flat.xml"), Path(folder, "flat.bin")
        ov.serialize(model, str(xml), str(weights))
        text, constants = xml.read_text(), np.fromfile(weights, np.uint8)
    return genai.LLMPipeline(
        text,
        ov.Tensor(constants),
        genai.Tokenizer(artifact),
        "CPU",
        genai.GenerationConfig(eos_token_id=0),
        ATTENTION_BACKEND="SDPA",
    )


def _reason(message: str) -> str:
    """What xgrammar says, without the place in its source and the condition that say it."""
    lines = message.strip().splitlines() or ["it does not compile"]
    said = next((line for line in reversed(lines) if ".cc:" in line), lines[-1])
    if ".cc:" in said:
        said = said.split(".cc:")[-1].partition(": ")[2]
    return said.split(" is false: ")[-1]
