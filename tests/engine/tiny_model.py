"""A model of seconds: trained a little on Python's own documentation, exported as FP32."""

import inspect
import pydoc_data.topics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from millrace_compressor.jobs import quantize

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTEXT_TOKENS = 512
TOPICS = pydoc_data.topics.topics
TEXT = "\n\n".join(inspect.cleandoc(TOPICS[name]) for name in sorted(TOPICS))[:150_000]


class TinyModel:
    """The checkpoint in ``model`` and its FP32 artifact in ``artifact``."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        self.artifact = folder / "artifact"

    def make(self, training_steps: int = 60) -> None:
        torch.manual_seed(0)
        fast = _tokenizer()
        ids = torch.tensor(fast(TEXT)["input_ids"])
        model = Qwen3(_architecture(fast))
        _train(model, ids, training_steps)
        model.save_pretrained(self.model)
        fast.save_pretrained(self.model)
        # Each plugin of OpenVINO gives the thread that loads it an alternate signal stack, so
        # that is none of the tests'.
        with ThreadPoolExecutor(max_workers=1) as own_thread:
            own_thread.submit(quantize.convert, self.model, "openvino-fp32", self.artifact).result()

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """What transformers says follows each token: float32, (len(tokens), vocabulary)."""
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits[0]
        found: np.ndarray = torch.log_softmax(logits, -1).numpy()
        return found

    def encode(self, text: str) -> list[int]:
        return list(PreTrainedTokenizerFast.from_pretrained(self.model)(text)["input_ids"])


def _tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _architecture(fast: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )


def _train(model: Qwen3, ids: torch.Tensor, steps: int) -> None:
    draw = np.random.default_rng(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other, with a model as small
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        starts = draw.integers(0, len(ids) - 129, 8)
        batch = torch.stack([ids[start : start + 128] for start in starts])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
