"""The processes that train one model together, and what they agree on."""

import os
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from millrace_runtime import manifest
from millrace_trainer.jobs.launch import STORE_VARIABLE


def join() -> None:
    """Meet the other ranks: where ``launch.py`` says, else by torch's own variables."""
    # Else DeepSpeed compiles a shared-memory all-reduce on the CPU: half a minute and a C++
    # compiler, for inference, which is no part of this job. Nothing else reads this.
    deepspeed.ops.__compatible_ops__ = {}
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(
        verbose=False,
        init_method=os.environ.get(STORE_VARIABLE),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def number() -> int:
    """This rank's own, from 0."""
    return dist.get_rank()


def is_first() -> bool:
    return number() == 0


def wait() -> None:
    """Until every rank has come this far."""
    dist.barrier()


def mean(values: list[float]) -> list[float]:
    """The mean of each value over the ranks; all ranks get the same."""
    total = torch.tensor(
        values, dtype=torch.float64, device=get_accelerator().current_device_name()
    )
    dist.all_reduce(total)
    return [float(value) for value in total / dist.get_world_size()]


def temporary_sibling(target: Path) -> Path:
    """A temporary directory beside ``target`` that the first rank makes and all ranks know."""
    name: list[Path | None] = [None]
    if is_first():
        name[0] = manifest.temporary_sibling(target)
    dist.broadcast_object_list(name, src=0)
    assert name[0] is not None
    return name[0]
