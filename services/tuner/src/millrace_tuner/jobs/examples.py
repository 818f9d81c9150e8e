"""From conversations to token ids, with a mark on each token that the assistant is to learn.

The text is what the model's own chat template renders. It is cut where an answer begins (just
after the generation prompt) and where it ends (just after its stop token), and the pieces are
tokenised one by one. So the ids of a first prompt are exactly those that serving computes, the
ids of an answer are such that a model can emit, and no token lies across the border between
what is given and what is learnt, not even when an answer begins with a line break.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, TypeVar

import numpy as np
from jinja2 import TemplateError
from numpy.typing import DTypeLike, NDArray

from millrace_examples.kinds import Conversation
from millrace_runtime.jobs import JobError

MAXIMUM_HELDOUT_EXAMPLES = 64
HELDOUT_FRACTION = 0.05
_LARGEST_UINT16_VOCABULARY = 65_535

Messages = Sequence[dict[str, Any]]


class Codec(Protocol):
    """A model's tokenizer and chat template, as ``training.load_codec`` provides them."""

    stop_texts: tuple[str, ...]

    def render(self, messages: Messages, tools: Messages, *, generation_prompt: bool) -> str:
        """The text of a conversation, with the opening of an answer after it when asked."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, nothing added to it."""


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation, and whether the model learns to write it."""

    text: str
    is_learned: bool


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation as tokens; both arrays have shape (tokens,), int32 and bool."""

    token_ids: NDArray[np.int32]
    is_learned: NDArray[np.bool_]
    was_truncated: bool

    @property
    def digest(self) -> str:
        """Identifies the content, whatever its place in the file."""
        content = self.token_ids.tobytes() + self.is_learned.tobytes()
        return hashlib.sha256(content).hexdigest()

    @property
    def labels(self) -> NDArray[np.int32]:
        """Targets as PyTorch's cross-entropy takes them: -100 where nothing is learned."""
        return np.where(self.is_learned, self.token_ids, np.int32(-100))


class _HasDigest(Protocol):
    @property
    def digest(self) -> str: ...


Identified = TypeVar("Identified", bound=_HasDigest)


@dataclass(frozen=True)
class Examples:
    """What a file gives: the examples that teach something, and what had to be cut."""

    examples: tuple[Example, ...]
    truncated: int
    skipped: int


def cut(conversation: Conversation, codec: Codec, given_messages: int = 0) -> list[Segment]:
    """The rendered conversation, cut at both ends of every answer; joined, it is the whole text.

    An answer is learned through its stop token; what the template writes after it is not. The
    first ``given_messages`` are a prompt and stay one piece, whoever wrote them.

    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, naming the line.
    """
    messages = conversation.messages
    whole = _render(conversation, codec, len(messages), generation_prompt=False)
    _require_tools(conversation, whole)
    segments: list[Segment] = []
    cursor = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index < given_messages:
            continue
        before = _render(conversation, codec, index, generation_prompt=True)
        through = _render(conversation, codec, index + 1, generation_prompt=False)
        if not (whole.startswith(through) and through.startswith(before)):
            place = f"the answer in messages[{index}]"
            problem = f"renders {place} differently from the prompt that precedes it"
            raise _unsuitable(conversation, problem)
        end = _end_of_answer(through, len(before), codec.stop_texts)
        segments.append(Segment(whole[cursor : len(before)], is_learned=False))
        segments.append(Segment(whole[len(before) : end], message.get("weight", 1) != 0))
        cursor = end
    segments.append(Segment(whole[cursor:], is_learned=False))
    return [segment for segment in segments if segment.text]


def prompt_text(line: int, messages: Messages, tools: Messages, codec: Codec) -> str:
    """A conversation that waits for an answer, with the answer's opening.

    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, naming the line.
    """
    conversation = Conversation(line, tuple(messages), tuple(tools))
    text = _render(conversation, codec, len(messages), generation_prompt=True)
    _require_tools(conversation, text)
    return text


def _end_of_answer(through: str, start: int, stop_texts: Sequence[str]) -> int:
    """Where the answer's last stop token ends; the end of the turn when there is none."""
    ends = [
        through.rfind(stop, start) + len(stop) for stop in stop_texts if stop in through[start:]
    ]
    return max(ends, default=len(through))


def _render(
    conversation: Conversation, codec: Codec, count: int, *, generation_prompt: bool
) -> str:
    messages = conversation.messages[:count]
    try:
        return codec.render(messages, conversation.tools, generation_prompt=generation_prompt)
    except (TemplateError, TypeError) as error:
        raise _unsuitable(conversation, f"refuses it: {error}") from error


def _require_tools(conversation: Conversation, text: str) -> None:
    """What a template leaves out silently would not be learnt: say so instead."""
    calls = [call for m in conversation.messages for call in m.get("tool_calls") or ()]
    for function in (entry["function"] for entry in (*calls, *conversation.tools)):
        if function["name"] not in text:
            raise _unsuitable(conversation, f"leaves out the tool {function['name']!r}")


def _unsuitable(conversation: Conversation, problem: str) -> JobError:
    message = (
        f"line {conversation.line}: the model's chat template {problem}; change the example, "
        "or tune a model whose template can express it"
    )
    return JobError("CHAT_TEMPLATE_UNSUITABLE", message)


def require_separable(codec: Codec) -> None:
    """Check that pieces of text tokenise to pieces of the whole's tokens.

    A tokenizer that puts something before every text (SentencePiece's dummy prefix) would
    give answers other ids than those which a model emits.

    Raises:
        JobError: TOKENIZER_UNSUITABLE.
    """
    probe = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."})
    segments = cut(Conversation(0, probe), codec)
    (whole,) = codec.encode(["".join(segment.text for segment in segments)])
    pieces = codec.encode([segment.text for segment in segments])
    if [token for piece in pieces for token in piece] != whole:
        message = (
            "the model's tokenizer adds tokens to each piece of a text, so answers cannot be "
            "told from prompts exactly; tune a model with a byte-level tokenizer"
        )
        raise JobError("TOKENIZER_UNSUITABLE", message)


def encode(
    conversation: Conversation, codec: Codec, maximum_tokens: int, given_messages: int = 0
) -> Example:
    """Tokenise one conversation; of one that is too long, the first ``maximum_tokens`` stay.

    All that stands before the first learned answer is one piece, as it is for serving, whoever
    wrote it: the answers of few-shot examples too.
    """
    segments = joined(cut(conversation, codec, given_messages))
    pieces = codec.encode([segment.text for segment in segments])
    token_ids = np.concatenate([np.asarray(piece, dtype=np.int32) for piece in pieces])
    marks = [segment.is_learned for segment in segments]
    is_learned = np.repeat(np.asarray(marks), [len(piece) for piece in pieces])
    was_truncated = len(token_ids) > maximum_tokens
    return Example(token_ids[:maximum_tokens], is_learned[:maximum_tokens], was_truncated)


def joined(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbours of one fate as one; what is learned never stands beside the like."""
    groups = groupby(segments, lambda segment: segment.is_learned)
    return [Segment("".join(one.text for one in group), fate) for fate, group in groups]


def encode_all(
    conversations: Sequence[Conversation],
    codec: Codec,
    maximum_tokens: int,
    on_progress: Callable[[int], None],
) -> Examples:
    """Tokenise a file. An example whose answer lies wholly beyond the limit is skipped.

    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE; NOTHING_TO_LEARN when every example is skipped.
    """
    kept: list[Example] = []
    truncated = 0
    for count, conversation in enumerate(conversations, start=1):
        example = encode(conversation, codec, maximum_tokens)
        truncated += example.was_truncated
        if example.is_learned.any():
            kept.append(example)
        on_progress(count)
    if not kept:
        message = (
            f"no answer begins within the first {maximum_tokens} tokens of its example; "
            "shorten the examples or tune a model with a longer context"
        )
        raise JobError("NOTHING_TO_LEARN", message)
    return Examples(tuple(kept), truncated, len(conversations) - len(kept))


def split(examples: Sequence[Identified]) -> tuple[list[Identified], list[Identified]]:
    """Set 5 % aside (1 to 64) as held-out examples, chosen by hash: (training, held out).

    Equal examples go to the same side, so that nothing held out is also trained on.

    Raises:
        JobError: TOO_FEW_EXAMPLES when nothing would be left to train on.
    """
    digests = [example.digest for example in examples]
    unique = dict(zip(digests, examples, strict=True))
    wanted = round(len(unique) * HELDOUT_FRACTION)
    chosen = sorted(unique)[: min(max(wanted, 1), MAXIMUM_HELDOUT_EXAMPLES)]
    if len(chosen) == len(unique):
        message = (
            "the training file holds one distinct example, which is needed to measure what is "
            "learnt; add examples or name a validation file"
        )
        raise JobError("TOO_FEW_EXAMPLES", message)
    aside = set(chosen)
    training = [e for e, digest in zip(examples, digests, strict=True) if digest not in aside]
    return training, [unique[digest] for digest in chosen]


def heldout_stream(
    examples: Sequence[Example], separator_id: int, vocabulary_size: int
) -> NDArray[Any]:
    """The examples one after the other, each followed by the separator; shape (tokens,)."""
    dtype: DTypeLike = np.uint16 if vocabulary_size <= _LARGEST_UINT16_VOCABULARY else np.uint32
    return np.concatenate(list(_separated(examples, separator_id))).astype(dtype)


def _separated(examples: Sequence[Example], separator_id: int) -> Iterator[NDArray[np.int32]]:
    separator = np.array([separator_id], dtype=np.int32)
    for example in examples:
        yield example.token_ids
        yield separator
