"""A pruned model learns from its original again: the plan of such a job. Pure.

Both models are named by content: neither needs to be a version, and the student never is one. The
job makes no version either; the compression that asked for it takes its final checkpoint.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument
from millrace_tuner import adapter_rules, hyperparameters, method_rules
from millrace_tuner.domain import BaseVersion, Companion, Content, FileReference, Plan
from millrace_tuner.methods import Distillation

if TYPE_CHECKING:
    from millrace_tuner.app import Wish

_SEED_BITS = 32


@dataclass(frozen=True)
class Recovery:
    """``service.proto``: Recovery."""

    student: Content
    teacher: Content
    teacher_checkpoint: str
    windows: int


def plan(tenant: str, wish: "Wish") -> Plan | None:
    """None: the wish is for another kind of job.

    Raises:
        InvalidArgument: naming the field: it is no distillation, or not of a compression.
    """
    recovery = wish.recovery
    if recovery is None:
        return None
    pruned = FileReference(wish.training_file, recovery.student, recovery.windows)
    if not pruned.is_pruned or names.tenant_of(pruned.name) != tenant:
        raise InvalidArgument(
            f"a recovery is of a compression of {tenant}, not of {pruned.name}",
            field="training_file",
        )
    if not isinstance(wish.method, Distillation):
        raise InvalidArgument("a recovery is a distillation", field="method")
    for field in ("validation_file", "sweep", "integration", "prompt"):
        if getattr(wish, field):
            raise InvalidArgument(f"a recovery has no {field}", field=field)
    method_rules.require_sensible(wish.method)
    adapter_rules.require_meaningful(wish.adapter, wish.hyperparameters.gradient_checkpointing)
    method_rules.require_shardable(wish.method, wish.adapter, wish.hyperparameters.zero_stage)
    return Plan(
        base_model=wish.base_model,
        base=BaseVersion(pruned.name, wish.base_model, 0, recovery.student),
        training_file=pruned,
        validation_file=None,
        suffix=wish.suffix,
        seed=wish.seed % (1 << _SEED_BITS),
        method=wish.method,
        hyperparameters=hyperparameters.resolve(
            wish.method, recovery.windows, wish.hyperparameters
        ),
        adapter=hyperparameters.resolve_adapter(wish.adapter),
        companion=Companion(recovery.teacher_checkpoint, recovery.teacher),
    )
