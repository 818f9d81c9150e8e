"""Golden prompts' questions on their way: several at once, beside the controller's looks."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any

from millrace_registry.golden import Answered
from millrace_registry.triton import NotScored

LOG = logging.getLogger(__name__)

LANES = 4
"""Of one version: its engine batches them, and clients' requests find room beside them."""

Key = tuple[int, str]
"""(version, prompt)"""


class AtOnce(Executor):
    """Runs in the caller's thread, before ``submit`` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Round:
    """The questions of one rollout. ``ask`` is called by the executor's threads.

    What is answered waits to be taken: nothing is written here, since only the controller's thread
    knows that the lease is still its own.
    """

    def __init__(
        self, executor: Executor, ask: Callable[[Key], Answered], stopped: threading.Event
    ) -> None:
        self._executor = executor
        self._ask = ask
        self._stopped = stopped
        self._lanes: dict[int, list[Future[Any]]] = {}
        self._answers: SimpleQueue[tuple[Key, Answered | NotScored]] = SimpleQueue()

    def is_idle(self, version: int) -> bool:
        return all(lane.done() for lane in self._lanes.get(version, ()))

    def send(self, version: int, prompts: Sequence[str], lanes: int) -> None:
        """Ask a version that is idle; each lane stops at the first that is not answered."""
        waiting = deque(prompts)
        count = min(lanes, len(waiting))
        self._lanes[version] = [
            self._executor.submit(self._run, version, waiting) for _ in range(count)
        ]

    def taken(self) -> list[tuple[Key, Answered | NotScored]]:
        """What has been answered since the last time, or why it was not."""
        found = []
        while True:
            try:
                found.append(self._answers.get_nowait())
            except Empty:
                return found

    def _run(self, version: int, waiting: deque[str]) -> None:
        while not self._stopped.is_set():
            try:
                key = (version, waiting.popleft())
            except IndexError:
                return
            answered = self._answer(key)
            if isinstance(answered, NotScored):
                waiting.clear()  # an engine that is busy, or silent, is not asked again at once
            self._answers.put((key, answered))

    def _answer(self, key: Key) -> Answered | NotScored:
        try:
            return self._ask(key)
        except NotScored as error:
            return error
        except Exception as error:  # as one that was not answered: whoever waits must hear of it
            LOG.exception("version %d could not be asked %s", *key)
            return NotScored(repr(error))
