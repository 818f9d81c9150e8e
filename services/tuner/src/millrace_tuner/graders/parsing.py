"""JSON of the OpenAI API -> ``specification``; what is wrong is said with the field's path.

Unknown fields are refused, so nothing is silently ignored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from millrace_runtime.errors import InvalidArgument
from millrace_tuner.graders import formula, messages, similarity
from millrace_tuner.graders.fields import Fields
from millrace_tuner.graders.specification import (
    OPERATIONS,
    LabelModel,
    Multi,
    PythonCode,
    ScoreModel,
    Single,
    Specification,
    StringCheck,
    TextSimilarity,
)

MAXIMUM_GRADERS = 32
MAXIMUM_SOURCE_LENGTH = 256 * 1024
IMAGE_TAGS = ("2025-05-08",)
"""OpenAI's images that source may be written for; all mean this service's own Python."""
_SAMPLING = {
    # The grader's name (with its odd plural) -> chat completions'.
    "max_completions_tokens": "max_completion_tokens",
    "reasoning_effort": "reasoning_effort",
    "seed": "seed",
    "temperature": "temperature",
    "top_p": "top_p",
}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def parse(document: Any, field: str = "grader") -> Specification:
    """A grader as a client wrote it.

    Args:
        document: the grader's JSON.
        field: how the request calls the grader, for errors.

    Raises:
        InvalidArgument: naming the field at fault.
    """
    fields = Fields(document, field)
    if fields.choice("type", (*_SINGLES, "multi")) == "multi":
        return _multi(fields)
    return _single(fields)


def _single(fields: Fields) -> Single:
    kind = fields.choice("type", tuple(_SINGLES))
    made = _SINGLES[kind](fields)
    fields.refuse_others()
    return made


def _multi(fields: Fields) -> Multi:
    name = fields.text("name")
    graders = _named_graders(fields)
    text = fields.text("calculate_output")
    where = fields.path("calculate_output")
    try:
        parsed = formula.parse(text)
    except formula.FormulaError as error:
        raise InvalidArgument(f"{where}: the formula {error}", field=where) from None
    unknown = sorted(parsed.names - set(graders))
    if unknown:
        there = ", ".join(graders)
        raise InvalidArgument(
            f"{where}: there is no grader {unknown[0]!r}; there are {there}", field=where
        )
    fields.refuse_others()
    return Multi(name, graders, parsed)


def _named_graders(fields: Fields) -> Mapping[str, Single]:
    """``{name: grader}``; or one grader alone, as the SDK's types have it, by its own name."""
    inner = fields.object("graders")
    where = fields.path("graders")
    if isinstance(inner.document.get("type"), str):
        grader = _single(inner)
        return {_variable(grader.name, inner.path("name")): grader}
    if not 1 <= len(inner.document) <= MAXIMUM_GRADERS:
        raise InvalidArgument(f"{where}: must hold 1 to {MAXIMUM_GRADERS} graders", field=where)
    return {
        _variable(name, inner.path(name)): _single(inner.object(name)) for name in inner.document
    }


def _variable(name: str, where: str) -> str:
    if not (name.isidentifier() and name.isascii()) or name in formula.FUNCTIONS:
        raise InvalidArgument(
            f"{where}: a grader of a formula is called by letters, digits and '_', and not as a "
            f"function is; {name!r} is not",
            field=where,
        )
    return name


def _string_check(fields: Fields) -> StringCheck:
    return StringCheck(
        name=fields.text("name"),
        input=fields.template("input"),
        reference=fields.template("reference"),
        operation=fields.choice("operation", OPERATIONS),
    )


def _text_similarity(fields: Fields) -> TextSimilarity:
    return TextSimilarity(
        name=fields.text("name"),
        input=fields.template("input"),
        reference=fields.template("reference"),
        metric=fields.choice("evaluation_metric", similarity.METRICS),
        pass_threshold=fields.number("pass_threshold"),
    )


def _python(fields: Fields) -> PythonCode:
    fields.optional_choice("image_tag", IMAGE_TAGS)
    return PythonCode(
        name=fields.text("name"),
        source=fields.text("source", MAXIMUM_SOURCE_LENGTH),
        pass_threshold=fields.number("pass_threshold"),
    )


def _score_model(fields: Fields) -> ScoreModel:
    lowest, highest = _range(fields)
    return ScoreModel(
        name=fields.text("name"),
        model=fields.text("model"),
        messages=messages.parse(fields),
        lowest=lowest,
        highest=highest,
        sampling=_sampling(fields),
        pass_threshold=fields.number("pass_threshold"),
    )


def _label_model(fields: Fields) -> LabelModel:
    labels = fields.texts("labels")
    passing = fields.texts("passing_labels")
    for index, label in enumerate(passing):
        if label not in labels:
            where = f"{fields.path('passing_labels')}[{index}]"
            raise InvalidArgument(f"{where}: {label!r} is not one of the labels", field=where)
    return LabelModel(
        name=fields.text("name"),
        model=fields.text("model"),
        messages=messages.parse(fields),
        labels=tuple(labels),
        passing=frozenset(passing),
    )


_SINGLES: Mapping[str, Callable[[Fields], Single]] = {
    "string_check": _string_check,
    "text_similarity": _text_similarity,
    "python": _python,
    "score_model": _score_model,
    "label_model": _label_model,
}


def _range(fields: Fields) -> tuple[float, float]:
    value = fields.take("range")
    if value is None:
        return 0.0, 1.0
    where = fields.path("range")
    if not _is_pair(value) or not value[0] < value[1]:
        raise InvalidArgument(f"{where}: must be two numbers, the lower first", field=where)
    return float(value[0]), float(value[1])


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(type(each) in (int, float) and math.isfinite(each) for each in value)
    )


def _sampling(fields: Fields) -> Mapping[str, Any]:
    if fields.document.get("sampling_params") is None:
        fields.take("sampling_params")
        return {}
    inner = fields.object("sampling_params")
    given = {
        "max_completions_tokens": inner.integer("max_completions_tokens", 1, 2**31 - 1),
        "reasoning_effort": inner.optional_choice("reasoning_effort", _EFFORTS),
        "seed": inner.integer("seed", -(2**63), 2**63 - 1),
        "temperature": inner.number("temperature", 0, 2),
        "top_p": inner.number("top_p", 0, 1),
    }
    inner.refuse_others()
    return {_SAMPLING[name]: value for name, value in given.items() if value is not None}


def check_values(item: Any, field: str = "item") -> Mapping[str, Any]:
    """The item of a request: an object, or nothing.

    Raises:
        InvalidArgument
    """
    if item is None:
        return {}
    if not isinstance(item, Mapping):
        raise InvalidArgument(f"{field}: must be an object", field=field)
    return item
