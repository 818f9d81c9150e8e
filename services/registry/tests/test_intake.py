"""Streams wait in their order, and nobody is left waiting; what a prompt may be."""

import sys
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

PLAYED = {"delivery": SimpleNamespace(Delivery=object), "stream": SimpleNamespace(Stream=object)}
with mock.patch.dict(sys.modules, PLAYED):
    from millrace_registry.engines import intake
    from millrace_registry.engines.intake import Intake


class Delivery:
    """Knows who has gone; takes down who was refused."""

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.failed: list[int] = []

    def was_given_up(self, stream: Any, now: float) -> bool:
        return stream.number in self.gone

    def fail(self, stream: Any, code: str, message: str) -> None:
        assert code == "CANCELLED"
        self.failed.append(stream.number)


@given(
    st.lists(
        st.one_of(
            st.just(("enter", 0)),
            st.tuples(st.just("take"), st.integers(0, 4)),
            st.tuples(st.just("leave"), st.integers(0, 9)),
        )
    )
)
def test_each_is_taken_once_in_order_or_given_up(steps: list[tuple[str, int]]) -> None:
    delivery = Delivery()
    waiting: deque[int] = deque()
    door: Any = Intake(delivery)
    entered = 0
    expected_failures: list[int] = []
    for step, number in steps:
        if step == "enter":
            assert door.enter(SimpleNamespace(number=entered, admitted=0.0)) == ""
            waiting.append(entered)
            entered += 1
        elif step == "leave":
            delivery.gone.add(number)
        else:
            expected: list[int] = []
            while waiting and len(expected) < number:
                first = waiting.popleft()
                (expected_failures if first in delivery.gone else expected).append(first)
            taken = door.take(number)
            assert [stream.number for stream in taken] == expected
            assert all(stream.admitted for stream in taken)
        assert delivery.failed == expected_failures
        if waiting:
            assert door.wait(is_busy=False)
    left = door.break_down("out of order")
    assert [stream.number for stream in left] == list(waiting)
    assert door.enter(SimpleNamespace(number=entered)) == "out of order"
    assert door.take(9) == []


def test_who_waits_for_work_is_told_of_it_and_of_the_end() -> None:
    door: Any = Intake(Delivery())
    told: list[bool] = []
    started = threading.Semaphore(0)

    def work() -> None:
        for _ in range(2):
            told.append(door.wait(is_busy=False))
            door.take(1)
            started.release()

    thread = threading.Thread(target=work)
    thread.start()
    door.enter(SimpleNamespace(number=0))
    assert started.acquire(timeout=10)
    door.close()
    thread.join(10)
    assert told == [True, False]


def encode(text: str) -> list[int]:
    return [ord(letter) - ord("a") for letter in text]


@pytest.mark.parametrize(
    "inputs",
    [{"prompt": np.array([b"abc"])}, {"input_ids": np.array([0, 1, 2])}],
)
def test_a_prompt_is_text_or_ids(inputs: dict[str, Any]) -> None:
    prompt = intake.prompt_of(inputs, encode, 3)
    assert (prompt.tolist(), prompt.dtype) == ([[0, 1, 2]], np.int64)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "either"),
        ({"prompt": np.array([b"a"]), "input_ids": np.array([0])}, "either"),
        ({"prompt": np.array([b""])}, "empty"),
        ({"prompt": np.array([b"d"])}, "outside the vocabulary"),
        ({"input_ids": np.array([-1])}, "outside the vocabulary"),
    ],
)
def test_what_is_no_prompt_is_refused(inputs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        intake.prompt_of(inputs, encode, 3)


def test_a_prompt_may_fill_the_context_and_no_more() -> None:
    assert intake.require_room(3, np.zeros((1, 3))) == 0
    with pytest.raises(ValueError, match="a prompt of 4 tokens does not fit"):
        intake.require_room(3, np.zeros((1, 4)))


def test_a_bias_is_for_tokens_that_there_are() -> None:
    intake.require_known({2: 1.0}, 3)
    with pytest.raises(ValueError, match="logit_bias has 3"):
        intake.require_known({2: 1.0, 3: -1.0}, 3)
