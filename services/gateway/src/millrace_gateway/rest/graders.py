"""``/v1/fine_tuning/alpha/graders``: whether a grader is right, and what it says of a sample.

Reference: https://platform.openai.com/docs/api-reference/graders
"""

from functools import partial
from typing import Any

import orjson
from pydantic import BaseModel, Field

from millrace.tuner.v1 import graders_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import CallerOf
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody

ROUTER = router("graders", "/v1/fine_tuning/alpha/graders")

# A judge may take its time, and is asked again when it does not answer.
_DEADLINE_SECONDS = 180.0
_FIELDS = {"grader_json": "grader", "item_json": "item"}


class ValidateGrader(RequestBody):
    grader: dict[str, Any]


class ValidatedGrader(BaseModel):
    """The grader as it was sent: it can be used."""

    grader: dict[str, Any]


class RunGrader(RequestBody):
    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] | None = None


class GraderErrors(BaseModel):
    """What went wrong; ``other_error_details`` is beyond the OpenAI API."""

    formula_parse_error: bool
    invalid_variable_error: bool
    model_grader_parse_error: bool
    model_grader_refusal_error: bool
    model_grader_server_error: bool
    model_grader_server_error_details: str | None
    other_error: bool
    other_error_details: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool


class GradeMetadata(BaseModel):
    """How a reward came about; ``passed`` is beyond the OpenAI API."""

    errors: GraderErrors
    execution_time: float = Field(description="seconds")
    name: str
    sampled_model_name: str | None
    scores: dict[str, float]
    token_usage: int | None
    type: str
    passed: bool | None


class GradeObject(BaseModel):
    reward: float
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, int]
    metadata: GradeMetadata


@ROUTER.post("/validate", response_model=ValidatedGrader)
async def validate_grader(body: ValidateGrader, caller: CallerOf) -> ValidatedGrader:
    """Whether a grader can be used; a 400 says why not, and names the field."""
    request = pb.ValidateGraderRequest(parent=caller.parent, grader_json=_json(body.grader))
    validate = partial(caller.upstream.graders.ValidateGrader, timeout=_DEADLINE_SECONDS)
    await upstream.call(validate, request, _FIELDS)
    return ValidatedGrader(grader=body.grader)


@ROUTER.post("/run", response_model=GradeObject)
async def run_grader(body: RunGrader, caller: CallerOf) -> GradeObject:
    """What a grader says of a sample. What went wrong within is in ``metadata.errors``."""
    request = pb.RunGraderRequest(
        parent=caller.parent,
        grader_json=_json(body.grader),
        item_json="" if body.item is None else _json(body.item),
        model_sample=body.model_sample,
    )
    run = partial(caller.upstream.graders.RunGrader, timeout=_DEADLINE_SECONDS)
    return _grade_object(await upstream.call(run, request, _FIELDS))


def _json(document: dict[str, Any]) -> str:
    return orjson.dumps(document).decode()


def _grade_object(grade: pb.RunGraderResponse) -> GradeObject:
    tokens = dict(grade.tokens_by_model)
    return GradeObject(
        reward=grade.reward,
        sub_rewards=dict(grade.sub_rewards),
        model_grader_token_usage_per_model=tokens,
        metadata=GradeMetadata(
            errors=_errors(grade.errors),
            execution_time=grade.execution_seconds,
            name=grade.name,
            sampled_model_name=grade.sampled_model if grade.HasField("sampled_model") else None,
            scores=dict(grade.sub_rewards) or {grade.name: grade.reward},
            token_usage=sum(tokens.values()) if tokens else None,
            type=grade.type,
            passed=grade.passed if grade.HasField("passed") else None,
        ),
    )


def _errors(errors: pb.GraderErrors) -> GraderErrors:
    """Every flag; details only where there are any."""
    values: dict[str, Any] = {}
    for field in errors.DESCRIPTOR.fields:
        is_given = not field.has_presence or errors.HasField(field.name)
        values[field.name] = getattr(errors, field.name) if is_given else None
    return GraderErrors(**values)
