"""What is graded, and what comes out, in the OpenAI API's words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Sample:
    """An answer of a model.

    Attributes:
        output_text: its text.
        output_tools: its tool calls, in chat completions' shape.
    """

    output_text: str
    output_tools: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """The ``sample`` of templates and of Python graders.

        ``output_json`` is None where the text is no JSON.
        """
        message = {
            "role": "assistant",
            "content": self.output_text,
            "tool_calls": list(self.output_tools) or None,
        }
        return {
            "output_text": self.output_text,
            "output_json": _parsed(self.output_text),
            "output_tools": list(self.output_tools),
            "choices": [{"index": 0, "message": message}],
        }


@dataclass(frozen=True)
class Errors:
    """What went wrong, as flags; names are the API's. ``other_error_details`` is beyond it."""

    formula_parse_error: bool = False
    invalid_variable_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_server_error: bool = False
    model_grader_server_error_details: str | None = None
    other_error: bool = False
    other_error_details: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False


@dataclass(frozen=True)
class Grade:
    """What a sample is worth.

    Attributes:
        reward: the grader's number; 0 where something went wrong.
        errors: what did.
        sub_rewards: of a multi grader, by the names in its formula.
        execution_seconds: how long grading took.
        sampled_model: the model that was asked, if one was.
        tokens: of the models that were asked, prompt and answer, by model.
        passed: whether the reward reaches ``pass_threshold``; None where there is none.
    """

    name: str
    type: str
    reward: float
    errors: Errors = Errors()
    sub_rewards: Mapping[str, float] = field(default_factory=dict)
    execution_seconds: float = 0.0
    sampled_model: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    passed: bool | None = None

    @property
    def is_valid(self) -> bool:
        """Whether nothing went wrong: the reward is the grader's, not the 0 of an error."""
        return self.errors == Errors()


def _parsed(text: str) -> Any:
    """What JSON says (RFC 8259: no NaN, no infinities), or None."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
