"""A grader that can be used: parse it once, grade many samples, close it.

    with Grader(parsing.parse(document), judge=HttpJudge(url, key)) as grader:
        grades = grader.grade([Sample("4"), Sample("5")], {"answer": "4"})

Grading never raises for what a sample, an item, a judge or the user's code does: that is in
``Grade.errors``, and the reward is 0.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

from millrace_tuner.graders import model_grading, similarity
from millrace_tuner.graders.formula import CalculationError
from millrace_tuner.graders.grades import Errors, Grade, Sample
from millrace_tuner.graders.judge import Judge, JudgeFailed
from millrace_tuner.graders.model_grading import Refused, Unreadable
from millrace_tuner.graders.sandbox import GraderFailed, Limits, PythonSandbox, SandboxFailed
from millrace_tuner.graders.specification import (
    LabelModel,
    Multi,
    PythonCode,
    ScoreModel,
    Single,
    Specification,
    StringCheck,
    TextSimilarity,
    asks_judge,
    singles,
)
from millrace_tuner.graders.templates import UnknownVariable

LOG = logging.getLogger(__name__)

_MOST_DETAILS = 2000


class Grader:
    """One grader at work; it keeps one sandboxed process for each Python grader in it.

    Args:
        judge: who is asked by model graders; needed where ``asks_judge`` holds.
        limits: of Python graders.
        judge_concurrency: questions to the judge at the same time.
    """

    def __init__(
        self,
        specification: Specification,
        *,
        judge: Judge | None = None,
        limits: Limits = Limits(),
        judge_concurrency: int = 8,
    ) -> None:
        if asks_judge(specification) and judge is None:
            raise ValueError("a grader that asks a model needs a judge")
        self.specification = specification
        self._judge = judge
        self._judge_concurrency = judge_concurrency
        self._sandboxes = {
            each.source: PythonSandbox(each.source, limits)
            for each in singles(specification)
            if isinstance(each, PythonCode)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its processes; it may be used again, which starts new ones."""
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def grade(self, samples: Sequence[Sample], item: Mapping[str, Any]) -> list[Grade]:
        """One grade a sample, in their order; all are answers to the same item."""
        if not asks_judge(self.specification) or len(samples) < 2:
            return [self._grade(sample, item) for sample in samples]
        with ThreadPoolExecutor(min(self._judge_concurrency, len(samples))) as threads:
            return list(threads.map(lambda sample: self._grade(sample, item), samples))

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        start = time.perf_counter()
        values = {"item": item, "sample": sample.values}
        if isinstance(self.specification, Multi):
            grade = self._combined(self.specification, values)
        else:
            grade = self._single(self.specification, values)
        return replace(grade, execution_seconds=time.perf_counter() - start)

    def _combined(self, multi: Multi, values: Mapping[str, Any]) -> Grade:
        grades = {name: self._single(each, values) for name, each in multi.graders.items()}
        rewards = {name: grade.reward for name, grade in grades.items()}
        found = Grade(
            multi.name,
            multi.type,
            0.0,
            errors=_all_errors([grade.errors for grade in grades.values()]),
            sub_rewards=rewards,
            tokens=_all_tokens([grade.tokens for grade in grades.values()]),
        )
        try:
            return replace(found, reward=multi.formula.value(rewards))
        except CalculationError as error:
            failed = replace(found.errors, other_error=True, other_error_details=str(error))
            return replace(found, errors=failed)

    def _single(self, grader: Single, values: Mapping[str, Any]) -> Grade:
        model = grader.model if isinstance(grader, ScoreModel | LabelModel) else None
        found = Grade(grader.name, grader.type, 0.0, sampled_model=model)
        try:
            reward, tokens = self._reward(grader, values)
        except Exception as error:
            used = _tokens_of(error)
            errors = _errors_of(error)
            return replace(found, errors=errors, tokens={model: used} if model and used else {})
        threshold = getattr(grader, "pass_threshold", None)
        return replace(
            found,
            reward=reward,
            tokens={model: tokens} if model else {},
            passed=None if threshold is None else reward >= threshold,
        )

    def _reward(self, grader: Single, values: Mapping[str, Any]) -> tuple[float, int]:
        """The reward, and the tokens that it took."""
        if isinstance(grader, ScoreModel | LabelModel):
            assert self._judge is not None
            return model_grading.score(grader, values, self._judge)
        if isinstance(grader, PythonCode):
            sandbox = self._sandboxes[grader.source]
            return sandbox.grade(values["sample"], values["item"]), 0
        text, reference = grader.input.fill(values), grader.reference.fill(values)
        if isinstance(grader, StringCheck):
            return float(_holds(grader.operation, text, reference)), 0
        assert isinstance(grader, TextSimilarity)
        return similarity.measure(grader.metric, text, reference), 0


def _holds(operation: str, text: str, reference: str) -> bool:
    """``like`` and ``ilike``: the text contains the reference."""
    if operation in ("eq", "ne"):
        return (text == reference) == (operation == "eq")
    if operation == "ilike":
        return reference.casefold() in text.casefold()
    return reference in text


def _errors_of(error: Exception) -> Errors:
    """What went wrong, in the API's flags."""
    match error:
        case UnknownVariable(is_unparsed_sample=True):
            return Errors(sample_parse_error=True, other_error_details=str(error))
        case UnknownVariable():
            return Errors(invalid_variable_error=True, other_error_details=str(error))
        case GraderFailed():
            details = str(error)[-_MOST_DETAILS:]
            return Errors(
                python_grader_runtime_error=True, python_grader_runtime_error_details=details
            )
        case SandboxFailed():
            return Errors(
                python_grader_server_error=True,
                python_grader_server_error_type=error.kind,
                other_error_details=str(error),
            )
        case JudgeFailed():
            return Errors(
                model_grader_server_error=True, model_grader_server_error_details=str(error)
            )
        case Refused():
            return Errors(model_grader_refusal_error=True, other_error_details=str(error.args[0]))
        case Unreadable():
            return Errors(model_grader_parse_error=True, other_error_details=str(error.args[0]))
        case similarity.TooLong():
            return Errors(other_error=True, other_error_details=str(error))
    # One sample that nobody foresaw must not end a job that trains for days.
    LOG.error("a grader failed", exc_info=error)
    return Errors(other_error=True, other_error_details=f"{type(error).__name__}; see the log")


def _tokens_of(error: Exception) -> int:
    is_told = isinstance(error, Refused | Unreadable) and len(error.args) > 1
    return int(error.args[1]) if is_told else 0


def _all_errors(found: Sequence[Errors]) -> Errors:
    """Each flag that any has; of details the first."""
    joined: dict[str, Any] = {}
    for errors in found:
        for name, value in vars(errors).items():
            joined[name] = joined.get(name) or value
    return Errors(**joined)


def _all_tokens(found: Sequence[Mapping[str, int]]) -> dict[str, int]:
    joined: dict[str, int] = {}
    for tokens in found:
        for model, number in tokens.items():
            joined[model] = joined.get(model, 0) + number
    return joined
