import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tuner_builders import conversations, tokenizer

from millrace_examples.kinds import Conversation
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import examples
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.examples import Example

# Pieces that tempt a tokenizer to merge over a border, and text that looks like a marker.
PIECES = st.sampled_from(
    ["\n", "\n\n", " ", "  ", "mill", " race", "assistant", "user\n", "<|im_end|>", "é", "水", "."]
)
TEXT = st.lists(PIECES, min_size=1, max_size=6).map("".join)
GIVEN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "tool"]), "content": TEXT}
)
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXT}, optional={"weight": st.sampled_from([0, 1])}
)
CONVERSATIONS = st.tuples(st.lists(GIVEN | ANSWER, max_size=5), ANSWER).map(
    lambda parts: Conversation(1, (*parts[0], parts[1]))
)


def codec() -> ChatCodec:
    return ChatCodec(tokenizer(), ("<|endoftext|>", "<|im_end|>"))


def chat(*contents: str, **last: Any) -> Conversation:
    """A conversation of user and assistant in turn; ``last`` are fields of the last answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    messages[-1].update(last)
    return Conversation(7, tuple(messages))


def decode(token_ids: Any) -> str:
    return str(tokenizer().decode(list(token_ids), skip_special_tokens=False))


@given(CONVERSATIONS)
@settings(max_examples=300, deadline=None)
def test_exactly_the_answers_and_their_stop_tokens_are_learned(conversation: Conversation) -> None:
    example = examples.encode(conversation, codec(), 10_000)
    answers = [m for m in conversation.messages if m["role"] == "assistant"]
    learned = "".join(m["content"] + "<|im_end|>" for m in answers if m.get("weight", 1))
    assert decode(example.token_ids[example.is_learned]) == unicodedata.normalize("NFC", learned)
    whole = codec().render(conversation.messages, (), generation_prompt=False)
    assert decode(example.token_ids) == unicodedata.normalize("NFC", whole)


@given(CONVERSATIONS)
@settings(max_examples=200, deadline=None)
def test_the_first_prompt_has_the_ids_that_serving_computes(conversation: Conversation) -> None:
    learned = [m["role"] == "assistant" and bool(m.get("weight", 1)) for m in conversation.messages]
    assume(any(learned))
    first = learned.index(True)
    prompt = codec().render(conversation.messages[:first], (), generation_prompt=True)
    (served,) = codec().encode([prompt])
    example = examples.encode(conversation, codec(), 10_000)
    assert example.token_ids[: len(served)].tolist() == served


def test_an_ordinary_conversation_has_the_ids_of_the_whole_text() -> None:
    conversation = Conversation(1, tuple(conversations(1)[0]["messages"]))
    ids = tokenizer().apply_chat_template(
        list(conversation.messages), tokenize=True, return_dict=False
    )
    assert examples.encode(conversation, codec(), 10_000).token_ids.tolist() == ids


def test_no_token_spans_the_border_of_an_answer_that_begins_with_a_line_break() -> None:
    conversation = chat("Hi", "\n\nmill")
    whole = codec().render(conversation.messages, (), generation_prompt=False)
    merged = codec().encode([whole])[0]
    example = examples.encode(conversation, codec(), 10_000)
    assert decode(example.token_ids[example.is_learned]) == "\n\nmill<|im_end|>"
    assert example.token_ids.tolist() != merged  # the whole text would have merged over it


def test_labels_are_the_ids_where_learned_and_minus_100_elsewhere() -> None:
    example = examples.encode(chat("a", "b"), codec(), 10_000)
    assert (example.labels[example.is_learned] == example.token_ids[example.is_learned]).all()
    assert set(example.labels[~example.is_learned].tolist()) == {-100}


def test_a_message_of_weight_0_is_read_but_not_learned() -> None:
    messages = list(chat("a", "first", "b", "second").messages)
    messages[1] = {**messages[1], "weight": 0}
    example = examples.encode(Conversation(1, tuple(messages)), codec(), 10_000)
    assert decode(example.token_ids[example.is_learned]) == "second<|im_end|>"
    assert "first" in decode(example.token_ids)


def test_long_examples_are_cut_and_counted_and_those_without_an_answer_skipped() -> None:
    long_answer, long_prompt = chat("a", "b " * 50), chat("a " * 50, "b")
    made = examples.encode_all([long_answer, long_prompt, chat("a", "b")], codec(), 20, print)
    assert (made.truncated, made.skipped, len(made.examples)) == (2, 1, 2)
    assert len(made.examples[0].token_ids) == 20


def test_a_file_with_nothing_to_learn_within_the_limit_is_refused() -> None:
    with pytest.raises(JobError) as caught:
        examples.encode_all([chat("a " * 50, "b")], codec(), 20, print)
    assert caught.value.reason == "NOTHING_TO_LEARN"


def test_tool_calls_that_the_template_writes_are_learned() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "turn", "arguments": "{}"}}
    example = examples.encode(chat("a", "", content=None, tool_calls=[call]), codec(), 10_000)
    assert '"name": "turn"' in decode(example.token_ids[example.is_learned])


def test_tools_that_the_template_leaves_out_are_an_error_that_names_the_line() -> None:
    tools = ({"type": "function", "function": {"name": "turn"}},)
    with pytest.raises(JobError, match=r"line 7: .* leaves out the tool 'turn'") as caught:
        examples.encode(Conversation(7, chat("a", "b").messages, tools), codec(), 10_000)
    assert caught.value.reason == "CHAT_TEMPLATE_UNSUITABLE"


class ForgetfulCodec(ChatCodec):
    """A template that shows an earlier answer otherwise than it was given (as Qwen3's does)."""

    def render(self, messages: Any, tools: Any, *, generation_prompt: bool) -> str:
        last = len(messages) - 1
        kept = [
            {**m, "content": f"<think></think>{m['content']}"}
            if i == last and m["role"] == "assistant"
            else m
            for i, m in enumerate(messages)
        ]
        return super().render(kept, tools, generation_prompt=generation_prompt)


def test_a_template_that_rewrites_history_is_refused_rather_than_learned_wrongly() -> None:
    forgetful = ForgetfulCodec(tokenizer(), ("<|im_end|>",))
    with pytest.raises(JobError, match=r"messages\[1\]") as caught:
        examples.encode(chat("a", "b", "c", "d"), forgetful, 10_000)
    assert caught.value.reason == "CHAT_TEMPLATE_UNSUITABLE"


class PrefixingCodec(ChatCodec):
    def encode(self, texts: Any) -> list[list[int]]:
        return [[5, *ids] for ids in super().encode(texts)]


def test_a_tokenizer_that_adds_a_prefix_to_each_text_is_refused() -> None:
    examples.require_separable(codec())
    with pytest.raises(JobError) as caught:
        examples.require_separable(PrefixingCodec(tokenizer(), ("<|im_end|>",)))
    assert caught.value.reason == "TOKENIZER_UNSUITABLE"


def example_of(*token_ids: int) -> Example:
    return Example(np.array(token_ids, np.int32), np.ones(len(token_ids), np.bool_), False)


@given(st.lists(st.integers(0, 150), min_size=1, max_size=400))
@settings(deadline=None)
def test_the_split_is_disjoint_complete_and_independent_of_order(numbers: list[int]) -> None:
    if len(set(numbers)) == 1:
        with pytest.raises(JobError):
            examples.split([example_of(n) for n in numbers])
        return
    training, heldout = examples.split([example_of(n) for n in numbers])
    trained = {int(e.token_ids[0]) for e in training}
    held = {int(e.token_ids[0]) for e in heldout}
    assert trained | held == set(numbers)
    assert not trained & held
    assert 1 <= len(heldout) == len(held) <= 64
    _, again = examples.split([example_of(n) for n in sorted(numbers)])
    assert {int(e.token_ids[0]) for e in again} == held


def test_the_heldout_stream_separates_examples_and_takes_the_smallest_type() -> None:
    stream = examples.heldout_stream([example_of(4, 5), example_of(6)], 0, 400)
    assert stream.tolist() == [4, 5, 0, 6, 0]
    assert stream.dtype == np.uint16
    assert examples.heldout_stream([example_of(70_000)], 0, 70_001).dtype == np.uint32
