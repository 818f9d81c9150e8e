"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): PEFT's layers and scores, between the steps.

PEFT leaves two things to the caller. Ranks are to be allocated after every step; here the state
of that goes with the training state, so that a resumed run allocates the same. And singular
vectors are to stay orthogonal (the paper's equation 4): PEFT adds that to the loss only of models
that compute one themselves; here its gradient is added before every step, whatever the method.
"""

from typing import TYPE_CHECKING, Any

import torch
from peft import AdaLoraConfig
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from millrace_tuner.jobs import checkpoint

if TYPE_CHECKING:
    from millrace_tuner.jobs.training import Run

_STATE_NAME = "adaptive_rank.pt"
_INITIAL_BUDGET = 1.5  # of the final one (the paper's section 4)
_WARMUP_FRACTION = 0.1
_FINAL_FRACTION = 0.3
_ALLOCATIONS = 100
_ORTHOGONALITY = 0.5  # the paper's gamma, as PEFT has it
_NEGLIGIBLE = 1e-30  # PEFT wants its own weight above zero
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def configuration(rank: int, **common: Any) -> AdaLoraConfig:
    """``rank`` is the mean over the layers in the end; more are trained in the beginning.

    When ranks are allocated, ``RankAllocation`` says: it knows the steps.
    """
    return AdaLoraConfig(
        init_r=max(round(rank * _INITIAL_BUDGET), rank + 1),
        target_r=rank,
        total_step=1,
        orth_reg_weight=_NEGLIGIBLE,
        **common,
    )


class RankAllocation(TrainerCallback):
    """What AdaLoRA does between the trainer's steps; ``model`` is a ``PeftModel``."""

    def __init__(self, run: "Run", model: Any) -> None:
        self._run = run
        self._pattern: dict[str, list[bool]] | None = None
        adapted = model.base_model
        self._layers: Any = adapted.model
        self._allocator: Any = adapted.rankallocator
        schedule, steps = self._allocator.peft_config, run.total_steps
        schedule.total_step = steps
        schedule.tinit = int(steps * _WARMUP_FRACTION)
        schedule.tfinal = int(steps * _FINAL_FRACTION)
        schedule.deltaT = max(steps // _ALLOCATIONS, 1)
        self._begin_orthonormal()

    def _begin_orthonormal(self) -> None:
        """PEFT's random vectors are so short that short trainings learn nothing with them."""
        for name, parameter in self._layers.named_parameters():
            if _is_basis(name):
                torch.nn.init.orthogonal_(parameter)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        spec = self._run.spec
        committed = checkpoint.newest_state(spec.output_directory, spec.digest)
        if committed is None:
            return
        saved = torch.load(committed.path / _STATE_NAME, weights_only=True)
        self._pattern = saved["pattern"]
        for name in _SCORES:
            setattr(self._allocator, name, saved[name])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        distances = [_distance(n, p) for n, p in self._layers.named_parameters() if _is_basis(n)]
        (_ORTHOGONALITY * torch.stack(distances).mean()).backward()  # type: ignore[no-untyped-call]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """PEFT's ``update_and_allocate``, but for the configuration, which stays as it is: with a
        pattern in it, PEFT would save layers of other shapes than those in training."""
        allocator, step = self._allocator, state.global_step + 1
        final = allocator.peft_config.total_step - allocator.peft_config.tfinal
        if step <= final:
            _, pattern = allocator.update_and_allocate(self._layers, step, force_mask=step == final)
            self._pattern = pattern or self._pattern
        else:
            allocator.mask_using_rank_pattern(self._layers, self._pattern)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Into the trainer's directory, before the recorder commits it."""
        path = self._run.trainer_directory / f"checkpoint-{state.global_step}" / _STATE_NAME
        scores = {name: getattr(self._allocator, name) for name in _SCORES}
        torch.save({"pattern": self._pattern, **scores}, path)


def _is_basis(name: str) -> bool:
    return "lora_A" in name or "lora_B" in name


def _distance(name: str, basis: torch.Tensor) -> torch.Tensor:
    """How far the rows of ``A`` (rank, inputs) or columns of ``B`` (outputs, rank) are from
    orthonormal ones: the Frobenius norm of the difference of their products from one."""
    products = basis @ basis.T if "lora_A" in name else basis.T @ basis
    one = torch.eye(len(products), device=basis.device)
    distance: torch.Tensor = torch.linalg.matrix_norm(products - one)
    return distance
