"""The tokenizer of a dataset: byte-level BPE with the markers of a ChatML-like template.

Byte-level BPE: Radford et al. 2019 (GPT-2), after Sennrich et al. 2016, arXiv:1508.07909. The
split into words is Qwen2's (arXiv:2407.10671), which keeps runs of spaces and newlines together
and so suits code; every text decodes to itself (after Unicode NFC).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from millrace_data.jobs.corpus import END_OF_TURN, START_OF_TURN, Document

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)  # ids 0, 1, 2
MINIMUM_VOCABULARY_SIZE = 256 + len(SPECIAL_TOKENS)
_MINIMUM_PAIR_COUNT = 2
_BATCH_SEGMENTS = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\\n<tool_call>\\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": '"
    " + call['function']['arguments'] + '}\\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(documents: Iterable[Document], vocabulary_size: int) -> Tokenizer:
    """A tokenizer of ``vocabulary_size`` tokens, fewer when the text has no more pairs to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=_MINIMUM_PAIR_COUNT,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (segment for document in documents for segment in document.segments)
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files that Hugging Face's ``AutoTokenizer.from_pretrained`` reads."""
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    content = json.dumps(_configuration(tokenizer), indent=2, sort_keys=True) + "\n"
    (directory / "tokenizer_config.json").write_text(content, encoding="utf-8")


def _configuration(tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "additional_special_tokens": [START_OF_TURN, END_OF_TURN],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": 1_000_000,
        "pad_token": END_OF_TEXT,
    }


def token_dtype(vocabulary_size: int) -> DTypeLike:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.uint16 if vocabulary_size <= 65_535 else np.uint32


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> Iterator[NDArray[Any]]:
    """The tokens of each document, in order, without a separator; shape (tokens,).

    Text is encoded as text: a marker that a user wrote into it stays ordinary characters. Only
    the turns of a chat get real markers. Batches are encoded in parallel (RAYON_NUM_THREADS).
    """
    dtype = token_dtype(tokenizer.get_vocab_size())
    start, end = (np.array([tokenizer.token_to_id(t)], dtype) for t in (START_OF_TURN, END_OF_TURN))
    tokenizer.encode_special_tokens = True
    newline = np.array(tokenizer.encode("\n").ids, dtype)
    for batch in _batches(documents):
        segments = [segment for document in batch for segment in document.segments]
        encoded = iter(tokenizer.encode_batch_fast(segments, add_special_tokens=False))
        for document in batch:
            turns = [np.array(next(encoded).ids, dtype) for _ in document.segments]
            if document.form == "chat":
                turns = [part for turn in turns for part in (start, turn, end, newline)]
            yield np.concatenate(turns)


def _batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    segments = 0
    for document in documents:
        batch.append(document)
        segments += len(document.segments)
        if segments >= _BATCH_SEGMENTS:
            yield batch
            batch, segments = [], 0
    if batch:
        yield batch
