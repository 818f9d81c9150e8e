"""Every source of random numbers of a process, as one state: Python's, numpy's, torch's.

Training draws from torch's alone today. All are seeded and kept, so that whatever draws from
another one tomorrow still comes to the same numbers after a restart.
"""

import random
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator


def seed(number: int) -> None:
    """Begin all of them at ``number``."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def state() -> dict[str, Any]:
    """Where they are, in types that ``torch.load`` reads without running anything."""
    name, keys, *rest = np.random.get_state(legacy=True)
    assert not isinstance(keys, str), "a dictionary is what the other form gives"
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "cpu": torch.get_rng_state(),
        "device": get_accelerator().get_rng_state(),
    }


def restore(state: dict[str, Any]) -> None:
    """Put them where ``state`` found them. An older state holds torch's alone."""
    torch.set_rng_state(state["cpu"])
    get_accelerator().set_rng_state(state["device"])
    if "numpy" in state:
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        random.setstate(state["python"])
