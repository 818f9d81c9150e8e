"""Graders that ask a model: what it is asked for, and how its answer is read.

The judge is held to a JSON schema with one field, ``result``. There is no field for its reasoning
before: a small judge would fill it until its tokens are used up, and one that reasons does so
before it answers.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from millrace_tuner.graders import messages
from millrace_tuner.graders.judge import Judge, Verdict
from millrace_tuner.graders.specification import LabelModel, ScoreModel


class Unreadable(ValueError):
    """The judge's answer is not what it was asked for."""


class Refused(Exception):
    """The judge would not answer."""


def score(
    grader: ScoreModel | LabelModel, values: Mapping[str, Any], judge: Judge
) -> tuple[float, int]:
    """The reward, and the tokens that it took.

    Raises:
        UnknownVariable, JudgeFailed
        Refused, Unreadable: with the tokens as second argument.
    """
    asked = messages.filled(grader.messages, values)
    sampling = grader.sampling if isinstance(grader, ScoreModel) else {}
    verdict = judge.answer(grader.model, asked, sampling, schema(grader))
    if verdict.refusal:
        raise Refused(verdict.refusal, verdict.tokens)
    if isinstance(grader, ScoreModel):
        return _score(grader, verdict), verdict.tokens
    return _label(grader, verdict), verdict.tokens


def schema(grader: ScoreModel | LabelModel) -> dict[str, Any]:
    """JSON Schema of the answer, within what OpenAI's structured outputs allow."""
    if isinstance(grader, ScoreModel):
        result: dict[str, Any] = {
            "type": "number",
            "minimum": grader.lowest,
            "maximum": grader.highest,
        }
    else:
        result = {"type": "string", "enum": list(grader.labels)}
    return {
        "type": "object",
        "properties": {"result": result},
        "required": ["result"],
        "additionalProperties": False,
    }


def _score(grader: ScoreModel, verdict: Verdict) -> float:
    result = _result(verdict.text)
    try:
        number = float(result)
    except (TypeError, ValueError, OverflowError):
        raise Unreadable(f"no number: {verdict.text[:200]!r}", verdict.tokens) from None
    if isinstance(result, bool) or not math.isfinite(number):
        raise Unreadable(f"no number: {verdict.text[:200]!r}", verdict.tokens)
    if not grader.lowest <= number <= grader.highest:
        raise Unreadable(
            f"{number:g} is not within {grader.lowest:g} and {grader.highest:g}", verdict.tokens
        )
    return number


def _label(grader: LabelModel, verdict: Verdict) -> float:
    result = _result(verdict.text)
    label = result.strip() if isinstance(result, str) else result
    if label not in grader.labels:
        raise Unreadable(f"no label: {verdict.text[:200]!r}", verdict.tokens)
    return float(label in grader.passing)


def _result(text: str) -> Any:
    """``result`` of a JSON object; or the whole text, of a judge that cannot be held to JSON."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()
    return document.get("result") if isinstance(document, dict) else document
