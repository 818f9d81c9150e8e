"""The other models that a job learns from: a teacher, a reward model, judges."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from millrace_runtime.errors import InvalidArgument, NotFound
from millrace_tuner.domain import BaseVersion, Companion
from millrace_tuner.graders import parsing
from millrace_tuner.graders.specification import LabelModel, ScoreModel, singles
from millrace_tuner.methods import Distillation, Method, ProximalPolicy, Reinforcement

if TYPE_CHECKING:
    from millrace_tuner.app import Jobs, Models

Resolve = Callable[[str, str, str], BaseVersion]
"""The version that (tenant, reference, field of the request) means."""

_GRADER = "method.reinforcement.grader"


def companion_of(jobs: "Jobs", resolve: Resolve, tenant: str, method: Method) -> Companion | None:
    """
    Raises:
        InvalidArgument: naming the field: there is no such model.
        Unavailable
    """
    if isinstance(method, Distillation):
        base = resolve(tenant, method.teacher, "method.distillation.teacher")
        return Companion(base.name, base.checkpoint)
    if isinstance(method, ProximalPolicy):
        return _reward_model(jobs, tenant, method.reward_model)
    return None


def judges_of(models: "Models", tenant: str, method: Method) -> tuple[str, ...]:
    """The versions that judge answers, by what their models mean now; of models elsewhere nothing
    is known.

    Raises:
        InvalidArgument: MODEL_QUARANTINED.
        Unavailable
    """
    if not isinstance(method, Reinforcement):
        return ()
    graders = singles(parsing.parse(json.loads(method.grader), _GRADER))
    asked = {each.model for each in graders if isinstance(each, ScoreModel | LabelModel)}
    found = []
    for model in sorted(asked):
        try:
            found.append(models.resolve(tenant, model, _GRADER).name)
        except NotFound:
            continue
    return tuple(found)


def _reward_model(jobs: "Jobs", tenant: str, reference: str) -> Companion:
    job = jobs.made_model(tenant, reference)
    final = None if job is None else jobs.final_checkpoint(job.id)
    if job is None or final is None or job.plan.method.kind != "reward":
        raise InvalidArgument(
            f"there is no reward model {reference!r}; name a job of the method 'reward' that "
            "has ended, or the model that it made",
            reason="MODEL_NOT_FOUND",
            field="method.ppo.reward_model",
        )
    return Companion(final.name, final.content)
