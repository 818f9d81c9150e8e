"""A small dataset and a small model, for tests of the training job."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from millrace_runtime import manifest

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
VOCABULARY_SIZE = len(SPECIAL_TOKENS) + 256

ARCHITECTURE = {
    "hidden_size": 32,
    "layers": 2,
    "attention_heads": 2,
    "key_value_heads": 1,
    "intermediate_size": 64,
    "context_length": 32,
}
TOTAL_STEPS, CHECKPOINT_STEP = 40, 20


def tokens(seed: int, count: int) -> NDArray[np.uint16]:
    """Something to learn: counting upwards from random places, documents apart."""
    source = np.random.default_rng(seed)
    documents = [
        (np.arange(length) + source.integers(256)) % 256 + len(SPECIAL_TOKENS)
        for length in source.integers(20, 60, size=count // 20)
    ]
    return np.concatenate([[0, *document] for document in documents])[:count].astype(np.uint16)


def write_dataset(
    folder: Path, *, train_tokens: int = 3_000, heldout_tokens: int = 600, shards: int = 2
) -> tuple[Path, str]:
    """Commit a dataset as the data service does; its path and digest."""
    target = folder / "dataset"
    temporary = manifest.temporary_sibling(target)
    _write_tokenizer(temporary / "tokenizer")
    for shard, part in enumerate(np.array_split(tokens(1, train_tokens), shards)):
        np.save(temporary / f"train-{shard:05d}.npy", part)
    np.save(temporary / "heldout-00000.npy", tokens(2, heldout_tokens))
    digest = manifest.commit(temporary, target, "dataset", {"vocabulary_size": VOCABULARY_SIZE})
    return target, digest


def _write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "chat_template": "{{ messages }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))


def spec_of(dataset: tuple[Path, str], output: Path, **changes: Any) -> dict[str, Any]:
    """A run of seconds, mostly of imports. Every step is reported."""
    hyperparameters = {
        "learning_rate": 5e-3,
        "total_steps": TOTAL_STEPS,
        "warmup_steps": 4,
        "batch_sequences": 8,
        "micro_batch_sequences": 2,
        "checkpoint_every_steps": CHECKPOINT_STEP,
        "seed": 7,
    }
    spec = {
        "run_id": "run-1",
        "model": "demo",
        "dataset_path": str(dataset[0]),
        "dataset_digest": dataset[1],
        "output_directory": str(output),
        "architecture": ARCHITECTURE,
        "hyperparameters": {**hyperparameters, **changes.pop("hyperparameters", {})},
        "report_seconds": 0,
        "threads": 1,
    }
    return {**spec, **changes}
