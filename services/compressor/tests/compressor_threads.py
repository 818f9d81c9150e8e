"""Where tests run OpenVINO."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_own_thread(call: Callable[[], T]) -> T:
    """Keep OpenVINO's CPU plugin off the main thread, which handles the tests' signals.

    Each plugin gives the thread that loads it an alternate signal stack of its own (its
    SigAltStackSetup); freed in another order than made, they leave the thread with one that is
    freed already, and the next signal is a segmentation fault. A job ends with its process.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(call).result()
