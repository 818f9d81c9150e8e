"""Whether a job can learn from a prompt template's rows."""

import json
from dataclasses import replace
from typing import Protocol

from millrace_examples.prompt_template import template_of
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument
from millrace_tuner.methods import Method
from millrace_tuner.prompt import Prompt, PromptWish

PROMPTED = frozenset(
    ("supervised", "distillation", "dpo", "orpo", "reward", "reinforcement", "ppo")
)
"""Methods that learn from what a prompt is answered with."""


class Prompts(Protocol):
    """The prompts of the data service (``neighbours.DataFiles``)."""

    def prompt(self, name: str, version: int) -> Prompt:
        """A version; 0 is the newest.

        Raises InvalidArgument naming ``prompt.prompt`` or ``prompt.version``: there is none."""
        ...


def resolve(
    prompts: Prompts, tenant: str, wish: PromptWish | None, method: Method
) -> Prompt | None:
    """
    Raises:
        InvalidArgument: naming the field: the method learns from something else, there is no such
            prompt, or nothing can be answered to it.
        Unavailable: the data service does not answer.
    """
    if wish is None:
        return None
    if method.kind not in PROMPTED:
        raise InvalidArgument(
            f"method {method.kind} does not learn from a prompt's answers; 'prompt' is for "
            f"{', '.join(sorted(PROMPTED))}",
            reason="UNSUPPORTED_VALUE",
            field="prompt",
        )
    if names.tenant_of(wish.name) != tenant:
        raise InvalidArgument(
            f"there is no prompt {names.last_id(wish.name)}",
            reason="PROMPT_NOT_FOUND",
            field="prompt.prompt",
        )
    found = replace(prompts.prompt(wish.name, wish.version), completion=wish.completion)
    _require_question(found)
    _require_distinct(found)
    return found


def _require_question(prompt: Prompt) -> None:
    if not template_of(json.loads(prompt.template)).asks:
        raise InvalidArgument(
            f"version {prompt.version} of the prompt does not end with a question: its last "
            "message must be the user's, for an answer to be learnt",
            reason="INVALID_PROMPT",
            field="prompt.version",
        )


def _require_distinct(prompt: Prompt) -> None:
    if prompt.completion in template_of(json.loads(prompt.template)).names:
        raise InvalidArgument(
            f"the prompt shows the column {prompt.completion!r}, so it cannot be the answer",
            reason="INVALID_VALUE",
            field="prompt.completion",
        )
