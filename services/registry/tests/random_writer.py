"""A model that writes any token a grammar lets it, the likelier those that end something.

It is xgrammar that lets it, in the engine's own pipeline, on bytes and the pieces of JSON.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov
import openvino_genai as genai
import openvino_tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from millrace_registry.engines.grammar import start_flat, structured

T = TypeVar("T")
END = "<|end|>"
# Tokens of several characters go from one part of a grammar to another.
PIECES = ['",', '":', '{"', '"}', "},", '"]', '\\"', "12", "0.", "ab", "ĠĠ", "ĊĠ", ":Ġ", ",Ġ"]
LIKELY = '"}],.-:'


class RandomWriter:
    """OpenVINO works in a thread of its own, where it may leave its signal stack."""

    def __init__(self, folder: Path) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._in_thread(lambda: self._start(folder))

    def write(self, kind: str, grammar: str, seed: int, max_tokens: int = 300) -> str | None:
        """An answer; None when it was cut off. Raises RuntimeError when it does not compile."""
        return self._in_thread(lambda: self._write(kind, grammar, seed, max_tokens))

    def close(self) -> None:
        self._in_thread(self._stop)
        self._thread.shutdown()

    def _in_thread(self, call: Callable[[], T]) -> T:
        return self._thread.submit(call).result()

    def _start(self, folder: Path) -> None:
        fast = _tokenizer()
        made = openvino_tokenizers.convert_tokenizer(fast, with_detokenizer=True)
        for model, name in zip(made, ("tokenizer", "detokenizer"), strict=True):
            ov.save_model(model, folder / f"openvino_{name}.xml")
        logits = np.zeros(len(fast), np.float32)
        logits[[fast.convert_tokens_to_ids(character) for character in LIKELY]] = 3
        self._end = fast.eos_token_id
        self._tokenizer = genai.Tokenizer(folder)
        self._pipeline: Any = start_flat(folder, logits)

    def _stop(self) -> None:
        self._pipeline = self._tokenizer = None

    def _write(self, kind: str, grammar: str, seed: int, max_tokens: int) -> str | None:
        config = genai.GenerationConfig(
            max_new_tokens=max_tokens, do_sample=True, rng_seed=seed, apply_chat_template=False
        )
        config.eos_token_id = self._end
        config.structured_output_config = structured(kind, grammar)
        tokens = self._pipeline.generate(ov.Tensor(np.zeros((1, 1), np.int64)), config).tokens[0]
        if tokens[-1] != self._end:
            return None
        return str(self._tokenizer.decode(tokens[:-1]))


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate([END, *alphabet, *PIECES])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[(piece[0], piece[1]) for piece in PIECES]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)
