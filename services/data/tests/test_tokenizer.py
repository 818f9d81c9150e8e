import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from data_builders import conversation, prose
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from millrace_data.jobs import tokenizer as bpe
from millrace_data.jobs.corpus import Document, turn_text

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL_TALK = [
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Two."},
]


def chat(messages: list[dict[str, object]]) -> Document:
    return Document("here", "chat", tuple(turn_text(message) for message in messages))


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return bpe.train([Document("here", "prose", (prose(seed),)) for seed in range(20)], 400)


def encode(trained: Tokenizer, document: Document) -> list[int]:
    (tokens,) = bpe.encode(trained, [document])
    return [int(token) for token in tokens]


def test_vocabulary(trained: Tokenizer) -> None:
    assert trained.get_vocab_size() == 400
    assert [trained.token_to_id(token) for token in bpe.SPECIAL_TOKENS] == [0, 1, 2]


def test_a_small_text_gives_a_small_vocabulary() -> None:
    small = bpe.train([Document("here", "prose", ("abab",))], 4096)
    assert bpe.MINIMUM_VOCABULARY_SIZE <= small.get_vocab_size() < 270


@given(text=st.text())
def test_every_text_decodes_to_itself(trained: Tokenizer, text: str) -> None:
    tokens = encode(trained, Document("here", "prose", (text,)))
    assert trained.decode(tokens, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("marker", bpe.SPECIAL_TOKENS)
def test_a_marker_in_a_users_text_is_only_text(trained: Tokenizer, marker: str) -> None:
    document = Document("here", "prose", (f"before{marker}after",))
    tokens = encode(trained, document)
    assert not set(tokens) & {0, 1, 2}
    assert trained.decode(tokens) == document.text


@pytest.mark.parametrize("messages", [conversation(3)["messages"], TOOL_TALK])
def test_training_and_serving_render_a_chat_alike(
    trained: Tokenizer, tmp_path: Path, messages: list[dict[str, object]]
) -> None:
    bpe.save(trained, tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.apply_chat_template(messages, tokenize=False) == chat(messages).text
    rendered = loaded.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert rendered == encode(trained, chat(messages))


def test_loaded_by_transformers(trained: Tokenizer, tmp_path: Path) -> None:
    bpe.save(trained, tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert (loaded.eos_token, loaded.pad_token) == (bpe.END_OF_TEXT, bpe.END_OF_TEXT)
    assert loaded("<|im_start|>user\nHi<|im_end|>").input_ids[0] == 1
    prompt = loaded.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_saved_files_are_the_same_each_time(trained: Tokenizer, tmp_path: Path) -> None:
    for name in ("one", "other"):
        bpe.save(trained, tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    assert json.loads((tmp_path / "one" / "tokenizer_config.json").read_text())["chat_template"]


def test_documents_come_out_in_order_over_many_batches(trained: Tokenizer) -> None:
    documents = [Document("here", "prose", (f"{n} words",)) for n in range(1500)]
    decoded = [trained.decode(tokens.tolist()) for tokens in bpe.encode(trained, documents)]
    assert decoded == [document.text for document in documents]


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"), [(300, np.uint16), (65_535, np.uint16), (65_536, np.uint32)]
)
def test_dtype(vocabulary_size: int, dtype: type) -> None:
    assert bpe.token_dtype(vocabulary_size) is dtype
