"""The grader of a reinforcement job: made from its JSON, checked against the file, at work.

Imports nothing heavy: the validating job checks graders too.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from millrace_examples.kinds import Task
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.jobs import JobError
from millrace_runtime.settings import secret
from millrace_tuner.graders import parsing, sandbox, specification
from millrace_tuner.graders.grader import Grader
from millrace_tuner.graders.grades import Errors, Grade
from millrace_tuner.graders.judge import HttpJudge
from millrace_tuner.graders.sandbox import Limits, SandboxFailed
from millrace_tuner.graders.specification import PythonCode, Specification
from millrace_tuner.jobs import tool_calls
from millrace_tuner.jobs.prompts import Prompt
from millrace_tuner.settings import TunerSettings

LOG = logging.getLogger(__name__)

# A judge that is away for a moment costs its steps; one that stays away must not cost days.
_FAILED_IN_A_ROW = 3


def parse(grader_json: str) -> Specification:
    """
    Raises:
        JobError: INVALID_GRADER, naming the field.
    """
    try:
        return parsing.parse(json.loads(grader_json))
    except (InvalidArgument, ValueError) as error:
        raise JobError("INVALID_GRADER", f"{error}; correct the grader") from None


def require_fields(grader: Specification, tasks: Sequence[Task], purpose: str) -> None:
    """Check that every item has what the grader's templates read of it.

    Raises:
        JobError: INVALID_EXAMPLE, naming line and field.
    """
    templates = specification.templates(grader)
    for task in tasks:
        for template in templates:
            for variable in template.missing(task.item):
                message = (
                    f"{purpose}, line {task.line}: {variable}: the grader reads it, but it is "
                    "not there; correct the line and upload again, or change the grader"
                )
                raise JobError("INVALID_EXAMPLE", message)


def require_sources(grader: Specification, limits: Limits = Limits()) -> None:
    """Compile the grader's Python where it would run.

    Raises:
        JobError: INVALID_GRADER, GRADER_FAILED when Python cannot be run here.
    """
    for each in specification.singles(grader):
        if isinstance(each, PythonCode):
            try:
                sandbox.check_source(each.source, f"grader {each.name!r}: source", limits)
            except InvalidArgument as error:
                raise JobError("INVALID_GRADER", f"{error}; correct the grader") from None
            except SandboxFailed as error:
                message = f"Python graders cannot be run here: {error}"
                raise JobError("GRADER_FAILED", message) from None


def ready(grader: Specification, settings: TunerSettings, tenant: str) -> Grader:
    """The grader with its judge; the service's settings come by the environment.

    Raises:
        JobError: JUDGE_NOT_CONFIGURED, JUDGE_OF_ANOTHER_TENANT.
    """
    judge = None
    if specification.asks_judge(grader):
        if not settings.judge_base_url:
            message = (
                "the grader asks a model, and this mesh has no judge; its operator sets "
                "MILLRACE_TUNER_JUDGE_BASE_URL and MILLRACE_TUNER_JUDGE_API_KEY"
            )
            raise JobError("JUDGE_NOT_CONFIGURED", message)
        if settings.judge_tenant not in (None, tenant):
            message = (
                "this mesh's judge asks with the key of another tenant; its operator sets "
                "MILLRACE_TUNER_JUDGE_API_KEY, and MILLRACE_TUNER_JUDGE_TENANT, to allow yours"
            )
            raise JobError("JUDGE_OF_ANOTHER_TENANT", message)
        key = secret(settings.judge_api_key) or settings.judge_api_key_path or ""
        judge = HttpJudge(settings.judge_base_url, key)
    return Grader(grader, judge=judge, limits=Limits(call_seconds=settings.grader_seconds))


@dataclass(frozen=True)
class Graded:
    """A reward for each answer, and the share of answers that could not be graded."""

    rewards: list[float]
    error_rate: float


class Grading:
    """Gives rewards; what cannot be graded gets 0 and is counted.

    A whole batch of which nothing can be graded teaches nothing: after three in a row it ends
    the job. An answer that is no JSON, where the grader reads JSON, was graded: it is bad.
    """

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._failed_in_a_row = 0

    def grade(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Graded:
        """Answers to one prompt stand side by side.

        Raises:
            JobError: GRADER_FAILED, with what the grader said.
        """
        grades: list[Grade] = []
        pairs = zip(prompts, texts, strict=True)
        for _, group in groupby(pairs, key=lambda pair: id(pair[0])):
            answers = list(group)
            prompt = answers[0][0]
            samples = [tool_calls.sample(text, prompt.functions) for _, text in answers]
            grades += self._grader.grade(samples, prompt.item)
        self._note_failures(grades)
        wrong = sum(not grade.is_valid for grade in grades)
        rewards = [grade.reward if grade.is_valid else 0.0 for grade in grades]
        return Graded(rewards, wrong / len(grades))

    def _note_failures(self, grades: Sequence[Grade]) -> None:
        failed = [grade for grade in grades if _is_failure(grade.errors)]
        if not failed or len(failed) < len(grades):
            self._failed_in_a_row = 0
            return
        said = describe(failed[-1].errors)
        LOG.warning("nothing of %d answers could be graded: %s", len(grades), said)
        self._failed_in_a_row += 1
        if self._failed_in_a_row == _FAILED_IN_A_ROW:
            message = f"no answer of {_FAILED_IN_A_ROW} batches could be graded: {said}"
            raise JobError("GRADER_FAILED", message)


def _is_failure(errors: Errors) -> bool:
    """Whether it is the grader's, and not the answer's, that there is no reward."""
    return errors != Errors() and not errors.sample_parse_error


def describe(errors: Errors) -> str:
    """The grader's own words, or the names of what went wrong."""
    found = asdict(errors)
    details = [value for value in found.values() if isinstance(value, str)]
    flags = [name for name, value in found.items() if value is True]
    return "; ".join(details or flags)
