"""Requests on their way in: what a prompt is, and who waits until the generating thread takes them.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from delivery import Delivery
from stream import Stream


class Intake:
    """Streams enter in any thread; the generating thread alone takes them."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._changed = threading.Condition()
        self._waiting: deque[Stream] = deque()
        self._is_closing = False
        self._failure = ""

    def enter(self, stream: Stream) -> str:
        """Let a stream wait; returns why it may not, when nobody takes streams any more."""
        with self._changed:
            if not self._failure:
                self._waiting.append(stream)
                self._changed.notify()
            return self._failure

    def wait(self, is_busy: bool) -> bool:
        """Return true when there is something to do: at once if ``is_busy``; false when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or is_busy or self._is_closing)
            return not self._is_closing

    def take(self, count: int) -> list[Stream]:
        """At most so many of those that have waited longest and are still waited for."""
        taken: list[Stream] = []
        while len(taken) < count and (stream := self._next()):
            now = time.monotonic()
            if self._delivery.was_given_up(stream, now):
                self._delivery.fail(stream, "CANCELLED", "cancelled by the client")
            else:
                stream.admitted = now
                taken.append(stream)
        return taken

    def close(self) -> None:
        """Have ``wait`` return false."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def break_down(self, failure: str) -> list[Stream]:
        """Let nobody enter any more; returns those that waited."""
        with self._changed:
            self._failure = failure
            left = list(self._waiting)
            self._waiting.clear()
        return left

    def _next(self) -> Stream | None:
        with self._changed:
            return self._waiting.popleft() if self._waiting else None


def prompt_of(inputs: dict[str, Any], encode: Callable[[str], Any], vocabulary_size: int) -> Any:
    """Token ids of shape [1, n], int64, from ``prompt`` or ``input_ids``.

    Args:
        encode: the token ids of a rendered text.

    Raises:
        ValueError: both are given or neither, or it is no prompt for this vocabulary.
    """
    if ("prompt" in inputs) == ("input_ids" in inputs):
        raise ValueError("give either prompt or input_ids")
    if "input_ids" in inputs:
        prompt = inputs["input_ids"].reshape(1, -1)
    else:
        prompt = np.array(encode(inputs["prompt"][0].decode()), np.int64).reshape(1, -1)
    if not prompt.size or prompt.min() < 0 or prompt.max() >= vocabulary_size:
        raise ValueError("the prompt is empty or has ids outside the vocabulary")
    return prompt


def require_room(context_tokens: int, prompt: Any) -> int:
    """How many tokens the context has left after a prompt.

    Raises:
        ValueError: the prompt is longer than the context.
    """
    room = context_tokens - int(prompt.size)
    if room < 0:
        raise ValueError(f"a prompt of {prompt.size} tokens does not fit the context")
    return room


def require_known(tokens: dict[int, float], vocabulary_size: int) -> None:
    """
    Raises:
        ValueError: ``logit_bias`` names a token that is not in the vocabulary.
    """
    if wrong := [token for token in tokens if token >= vocabulary_size]:
        raise ValueError(f"logit_bias has {wrong[0]}, which is not in the vocabulary")
