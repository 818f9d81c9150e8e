"""A prompt or an answer that is a string or messages, as TRL's formats have them.

Reference: https://huggingface.co/docs/trl/dataset_formats
"""

from collections.abc import Iterator

from millrace_examples.kinds import Messages
from millrace_examples.messages import answer_mistakes, normal_messages, prompt_mistakes
from millrace_examples.values import Mistake, kind_of


def text_mistakes(place: str, value: object, *, may_be_empty: bool = False) -> Iterator[Mistake]:
    if not isinstance(value, str):
        yield place, f"must be a string, not {kind_of(value)}"
    elif not value and not may_be_empty:
        yield place, "must not be empty"


def optional_text_mistakes(place: str, value: object) -> Iterator[Mistake]:
    if value is not None:
        yield from text_mistakes(place, value, may_be_empty=True)


def prompt_value_mistakes(place: str, value: object) -> Iterator[Mistake]:
    if isinstance(value, list):
        yield from prompt_mistakes(place, value)
    elif isinstance(value, str):
        yield from text_mistakes(place, value)
    else:
        yield place, f"must be a string or a list of messages, not {kind_of(value)}"


def answer_value_mistakes(place: str, value: object) -> Iterator[Mistake]:
    if isinstance(value, list):
        yield from answer_mistakes(place, value)
    elif isinstance(value, str):
        yield from text_mistakes(place, value)
    else:
        yield place, f"must be a string or a list of messages, not {kind_of(value)}"


def prompt_of(value: object) -> Messages:
    return normal_messages(value) if isinstance(value, list) else (said_by("user", value),)


def answer_of(value: object) -> Messages:
    return normal_messages(value) if isinstance(value, list) else (said_by("assistant", value),)


def said_by(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}
