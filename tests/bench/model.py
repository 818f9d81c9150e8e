"""A model of the demo's shape with random weights, as an artifact of the compressor's."""

import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from millrace_compressor.jobs import quantize
from tests.bench.processes import CHAT_TEMPLATE

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_VOCABULARY = 4096


def make(folder: Path, context_tokens: int = 1024) -> Path:
    """The artifact (OpenVINO, INT8) under ``folder``; made once."""
    artifact = folder / "artifact"
    if artifact.exists():
        return artifact
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        checkpoint, made = Path(work, "model"), Path(work, "artifact")
        _save(checkpoint, context_tokens)
        quantize.convert(checkpoint, "openvino-int8", made)
        made.rename(artifact)
    return artifact


def _save(checkpoint: Path, context_tokens: int) -> None:
    torch.manual_seed(0)
    tokenizer = tokenizer_of(_VOCABULARY)
    config = Qwen3Config(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(checkpoint)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(checkpoint)


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the standard library's text, ``vocabulary`` tokens at most."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(json.__file__).parent.parent.glob("*.py"))[:120]
    raw.train_from_iterator([path.read_text(errors="replace") for path in sources], trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
