"""The processes that train one model together, and what they agree on."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_trainer.jobs.launch import STORE_VARIABLE

T = TypeVar("T")

# Of gloo and of NCCL.
_PEER_GONE = re.compile("closed by peer|reset by peer|Broken pipe|remote process exited")


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


def told_by_first(ask: Callable[[], T]) -> T:
    """What ``ask`` returns on the first rank, on all ranks; only the first one asks.

    Whatever decides which way all ranks go must come from one of them. If each looked at the
    disk for itself, one might see what another has written meanwhile, and wait for ever.
    """
    answer: list[Any] = [ask() if is_first() else None]
    dist.broadcast_object_list(answer, src=0)
    told: T = answer[0]
    return told


@contextmanager
def loss_is_said() -> Iterator[None]:
    """Call it by its name when another rank has gone, as one does that the kernel has killed.

    A rank that fails for a reason of its own has said so before it went, and is heard first.

    Raises:
        JobError: CRASHED, which is tried again.
    """
    try:
        yield
    except RuntimeError as error:
        if not _PEER_GONE.search(str(error)):
            raise
        message = "another rank of the job has gone; the job's log says how, SIGKILL (signal 9) "
        message += "mostly for want of memory"
        raise JobError("CRASHED", message) from error


def temporary_sibling(target: Path) -> Path:
    """A temporary directory beside ``target`` that the first rank makes and all ranks know."""
    return told_by_first(lambda: manifest.temporary_sibling(target))
