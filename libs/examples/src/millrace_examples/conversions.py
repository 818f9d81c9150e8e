"""Which kind of example can be read as which other, without inventing anything."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from millrace_examples.kinds import Conversation, Example, Judged, Pair, Preference

Wanted = TypeVar("Wanted", bound=Example)


def _preferred(example: Preference) -> list[Conversation]:
    """The better answer is learnt; what the assistant said before it is given."""
    given = tuple(
        {**message, "weight": 0} if message["role"] == "assistant" else message
        for message in example.messages
    )
    return [Conversation(example.line, given + example.preferred, example.tools)]


def _judged(example: Preference) -> list[Judged]:
    """As TRL's ``unpair_preference_dataset``: the better answer is good, the worse is not."""
    answers = ((example.preferred, True), (example.rejected, False))
    return [
        Judged(example.line, example.messages, answer, is_good, example.tools)
        for answer, is_good in answers
    ]


def _pair(example: Conversation) -> list[Pair]:
    """Of one question and its answer; a longer conversation has no single source."""
    roles = [message["role"] for message in example.messages]
    if roles != ["user", "assistant"] or not example.messages[1].get("content"):
        return []
    return [Pair(example.line, example.messages[0]["content"], example.messages[1]["content"])]


_CONVERSIONS: dict[tuple[type, type], Callable[..., Sequence[Example]]] = {
    (Preference, Conversation): _preferred,
    (Preference, Judged): _judged,
    (Conversation, Pair): _pair,
}


def converts(found: type[Example], wanted: type[Example]) -> bool:
    return found is wanted or (found, wanted) in _CONVERSIONS


def convert(example: Example, wanted: type[Wanted]) -> list[Wanted]:
    """``example`` as examples of the kind ``wanted``; empty where this one has no such meaning.

    Raises:
        KeyError: no example of its kind can be read so (``converts``).
    """
    if isinstance(example, wanted):
        return [example]
    converted = _CONVERSIONS[type(example), wanted](example)
    return [made for made in converted if isinstance(made, wanted)]
