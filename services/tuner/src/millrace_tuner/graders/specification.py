"""What graders are made of, after parsing: plain values that are known to be right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from millrace_tuner.graders.formula import Formula
from millrace_tuner.graders.templates import Template

Operation: TypeAlias = Literal["eq", "ne", "like", "ilike"]
OPERATIONS: tuple[Operation, ...] = ("eq", "ne", "like", "ilike")


@dataclass(frozen=True)
class StringCheck:
    """1 where the comparison of two texts holds, else 0."""

    name: str
    input: Template
    reference: Template
    operation: Operation
    type: Literal["string_check"] = "string_check"


@dataclass(frozen=True)
class TextSimilarity:
    """How alike two texts are, in [0, 1]; ``metric`` is one of ``similarity.METRICS``."""

    name: str
    input: Template
    reference: Template
    metric: str
    pass_threshold: float | None = None
    type: Literal["text_similarity"] = "text_similarity"


@dataclass(frozen=True)
class PythonCode:
    """What ``grade(sample, item)`` in ``source`` returns."""

    name: str
    source: str
    pass_threshold: float | None = None
    type: Literal["python"] = "python"


@dataclass(frozen=True)
class Part:
    """One piece of a message to the judge: ``kind`` is text, image or audio.

    Attributes:
        content: the text, the image's URL, or the audio in base64.
        detail: an image's level of detail, or the audio's format.
    """

    kind: Literal["text", "image", "audio"]
    content: Template
    detail: str = ""


@dataclass(frozen=True)
class Message:
    """One message to the judge."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ScoreModel:
    """The number that a model gives, within ``[lowest, highest]``.

    ``sampling`` is in the names of chat completions.
    """

    name: str
    model: str
    messages: tuple[Message, ...]
    lowest: float = 0.0
    highest: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    pass_threshold: float | None = None
    type: Literal["score_model"] = "score_model"


@dataclass(frozen=True)
class LabelModel:
    """1 where a model chooses one of ``passing``, else 0."""

    name: str
    model: str
    messages: tuple[Message, ...]
    labels: tuple[str, ...]
    passing: frozenset[str]
    type: Literal["label_model"] = "label_model"


Single: TypeAlias = StringCheck | TextSimilarity | PythonCode | ScoreModel | LabelModel


@dataclass(frozen=True)
class Multi:
    """A formula over the rewards of other graders, by the names it calls them."""

    name: str
    graders: Mapping[str, Single]
    formula: Formula
    type: Literal["multi"] = "multi"


Specification: TypeAlias = Single | Multi


def singles(specification: Specification) -> Sequence[Single]:
    """The graders that do the work: those of a multi grader, or the one itself."""
    if isinstance(specification, Multi):
        return tuple(specification.graders.values())
    return (specification,)


def asks_judge(specification: Specification) -> bool:
    """Whether a model is asked."""
    return any(isinstance(each, ScoreModel | LabelModel) for each in singles(specification))


def templates(specification: Specification) -> Sequence[Template]:
    """All texts of it that read the sample or the item."""
    found: list[Template] = []
    for each in singles(specification):
        if isinstance(each, StringCheck | TextSimilarity):
            found += (each.input, each.reference)
        elif isinstance(each, ScoreModel | LabelModel):
            found += (part.content for message in each.messages for part in message.parts)
    return found
