"""DeepSpeed's ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054) around a trainer.

Its ranks share the optimizer's state (stage 1), the gradients (2) and the weights (3). A job is
one rank, on the CPU or on one GPU. Weights stay float32 and products are of the job's precision,
by torch's autocast, so that the steps are those of a job without ZeRO.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer
from transformers.integrations import deepspeed as integration

from millrace_runtime.jobs import JobError
from millrace_tuner import method_rules
from millrace_tuner.jobs.specification import Spec

_BUCKET_ELEMENTS = 50_000_000  # of gradients that are reduced together: 200 MB in float32
_KEPT_ELEMENTS = 10_000  # a smaller weight is not split: norms

# torch's own, as the trainer takes it without ZeRO: DeepSpeed's would have to be compiled. Made by
# DeepSpeed: it drops the group without a parameter that the trainer's would have under an adapter.
_ADAM = {"torch_adam": True, "fused": True} | dict.fromkeys(
    ("lr", "betas", "eps", "weight_decay"), "auto"
)


def arguments(stage: int, precision: torch.dtype) -> dict[str, Any]:
    """What ``transformers.TrainingArguments`` say of it, in place of what they say without it.

    ``join`` comes before. "use_cpu" would have accelerate switch DeepSpeed off.
    """
    if not stage:
        return {}
    return {
        "use_cpu": False,
        "bf16": False,
        "fp16": False,
        "deepspeed": _configuration(stage, precision),
        "accelerator_config": {"use_configured_state": True},
    }


def _configuration(stage: int, precision: torch.dtype) -> dict[str, Any]:
    """Of DeepSpeed; "auto" is what the trainer's arguments say."""
    autocast = precision != torch.float32
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "torch_autocast": {"enabled": autocast, "dtype": str(precision).removeprefix("torch.")},
        "optimizer": {"type": "AdamW", "params": _ADAM},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": _KEPT_ELEMENTS,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "steps_per_print": 10**9,
    }


def join(spec: Spec) -> None:
    """Make this process the only rank of a group, and tell accelerate of it.

    Nothing listens for others: the group's store is in memory.

    Raises:
        JobError: ZERO_STAGE_UNSUPPORTED, where DeepSpeed cannot train such a job.
    """
    stage = spec.hyperparameters.zero_stage
    if not stage:
        return
    mistake = method_rules.zero_mistake(spec.method, spec.adapter, stage)
    if mistake is not None:
        raise JobError("ZERO_STAGE_UNSUPPORTED", f"zero_stage: {mistake}")
    # Imported here: few jobs need it, and it takes seconds.
    import deepspeed
    from accelerate import state  # type: ignore[import-untyped]

    # Else DeepSpeed compiles a shared-memory all-reduce on the CPU: half a minute and a C++
    # compiler, for inference, which is no part of this job. Nothing else reads this.
    deepspeed.ops.__compatible_ops__ = {}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    state.AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # this is how accelerate is told
    state.PartialState(backend=backend)


def held_precision(spec: Spec, precision: torch.dtype) -> torch.dtype:
    """Of frozen weights: those that stage 3 has split cannot be widened to measure exactly."""
    return torch.float32 if spec.hyperparameters.zero_stage == 3 else precision


def require_enabled(trainer: Trainer, stage: int) -> None:
    """
    Raises:
        JobError: ZERO_STAGE_UNSUPPORTED, when DeepSpeed would not do what was asked for.
    """
    if not stage:
        return
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != stage:
        message = f"zero_stage: DeepSpeed cannot train by stage {stage} on this machine"
        raise JobError("ZERO_STAGE_UNSUPPORTED", message)


@contextlib.contextmanager
def whole_weights(trainer: Trainer) -> Iterator[None]:
    """The weights in training are meanwhile in their model, to be read; stage 3 keeps them out of
    it between its layers' passes. The model must not compute meanwhile."""
    if not trainer.is_deepspeed_enabled:
        yield
        return
    from deepspeed import zero

    model: Any = trainer.model
    trained = [each for each in model.parameters() if each.requires_grad]
    split = [each for each in trained if hasattr(each, "ds_id")]
    with zero.GatheredParameters(split):
        yield


@contextlib.contextmanager
def loading_whole(trainer: Trainer) -> Iterator[None]:
    """Models that are loaded meanwhile are whole; stage 3 would have every one of them split."""
    config = getattr(trainer.args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    integration.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        integration.set_hf_deepspeed_config(config)  # type: ignore[no-untyped-call]
