"""The embedder's thread, with a model and a Triton that are played."""

import importlib
import json
import queue
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import millrace_registry

ENGINES = Path(millrace_registry.__file__).parent / "engines"
CONTEXT, VOCABULARY, SIZE = 2000, 100, 3
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, SIZE)).astype(np.float32)


class FakeTriton(ModuleType):
    """What the engine uses of ``triton_python_backend_utils``."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    class TritonError(Exception):
        INVALID_ARG, CANCELLED, UNAVAILABLE = "INVALID_ARG", "CANCELLED", "UNAVAILABLE"

    @staticmethod
    def Tensor(name: str, value: Any) -> tuple[str, Any]:
        return name, value

    @staticmethod
    def InferenceResponse(outputs: Sequence[Any] = (), error: Any = None) -> Any:
        return {"error": error.args} if error else dict(outputs)


class FakeForward:
    """A model whose hidden states are rows of a table, without what came before."""

    hidden_size = SIZE

    def __init__(self) -> None:
        self.open_now = self.most_open = 0
        self.widths: list[tuple[int, int]] = []
        self.failure: Exception | None = None

    def open(self) -> "FakeForward":
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        return self

    def release(self, _sequences: Any) -> None:
        self.open_now -= 1

    def hidden(self, tokens: Any) -> Any:
        if self.failure:
            raise self.failure
        self.widths.append(tokens.shape)
        return TABLE[tokens]


class Sender:
    """One request's; hears the responses."""

    def __init__(self) -> None:
        self.heard: queue.Queue[tuple[Any, int]] = queue.Queue()
        self.cancelled = False

    def send(self, response: Any, flags: int = 0) -> None:
        self.heard.put((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled

    def responses(self) -> Iterator[Any]:
        """Until the last."""
        flags = 0
        while not flags:
            response, flags = self.heard.get(timeout=60)
            yield response

    def error(self) -> tuple[str, str]:
        """What the request ended with: a code and a message."""
        *_, last = self.responses()
        message, code = last["error"]
        return code, message

    def vectors(self) -> dict[int, Any]:
        return {
            index: vector
            for response in self.responses()
            if "embedding" in response
            for index, vector in zip(
                response["embedding_index"].tolist(), response["embedding"], strict=True
            )
        }


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``embedder`` as it is imported beside ``model.py``."""
    monkeypatch.syspath_prepend(str(ENGINES))
    fake = FakeTriton("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    for file in ENGINES.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    yield importlib.import_module("embedder")
    for file in ENGINES.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def forward() -> FakeForward:
    return FakeForward()


@pytest.fixture
def embedder(module: Any, forward: FakeForward) -> Iterator[Any]:
    def encode(text: str) -> Any:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64) % VOCABULARY

    made = module.Embedder(forward, encode, VOCABULARY, CONTEXT)
    yield made
    made.close()


def ask(embedder: Any, sizes: Sequence[int], tokens: Any = None, **embed: Any) -> Sender:
    sender = Sender()
    given = np.arange(sum(sizes)) % VOCABULARY if tokens is None else tokens
    document = json.dumps({"embed": {"sizes": list(sizes), **embed}}).encode()
    inputs = {"sampling": np.array([document], np.object_), "input_ids": given}
    assert embedder.take(inputs, sender)
    return sender


def means_of(sizes: Sequence[int]) -> Any:
    ends = np.cumsum(sizes)
    tokens = np.arange(ends[-1]) % VOCABULARY
    rows = [
        TABLE[tokens[end - size : end]].mean(axis=0) for size, end in zip(sizes, ends, strict=True)
    ]
    return np.stack([row / np.linalg.norm(row) for row in rows])


def test_each_input_has_its_vector(embedder: Any, forward: FakeForward) -> None:
    sizes = [300, 2, 7, 600, 2, 40]
    found = ask(embedder, sizes).vectors()
    assert np.stack([found[n] for n in range(len(sizes))]) == pytest.approx(
        means_of(sizes), abs=1e-5
    )
    assert forward.widths == [(4, 40), (1, 256), (1, 44), (1, 256), (1, 256), (1, 88)]
    assert forward.open_now == 0


def test_a_text_is_encoded(embedder: Any) -> None:
    sender = Sender()
    inputs = {"sampling": np.array([b'{"embed":true}'], np.object_)}
    inputs["prompt"] = np.array(["a🙂".encode()], np.object_)
    assert embedder.take(inputs, sender)
    [response] = sender.responses()
    assert response["prompt_token_count"].tolist() == [5]
    assert response["finish_reason"].tolist() == [b"stop"]
    times = json.loads(response["timing"][0])
    assert 0 <= times["queue_seconds"] <= times["first_token_seconds"] <= times["total_seconds"]


def test_what_asks_for_text_is_left_to_others(embedder: Any) -> None:
    assert not embedder.take({"sampling": np.array([b"{}"], np.object_)}, Sender())


@pytest.mark.parametrize(
    ("sizes", "embed", "named"),
    [
        ([CONTEXT + 1], {}, "the context is 2000"),
        ([3], {"dimensions": SIZE + 1}, "dimensions must be 1 to 3"),
    ],
)
def test_a_refusal_says_why(embedder: Any, sizes: list[int], embed: Any, named: str) -> None:
    code, message = ask(embedder, sizes, **embed).error()
    assert code == "INVALID_ARG" and named in message


def test_a_model_that_hides_its_states_is_refused(embedder: Any, forward: FakeForward) -> None:
    forward.hidden_size = 0
    code, message = ask(embedder, [3]).error()
    assert code == "INVALID_ARG" and message.startswith("embed: ")


def test_ids_outside_the_vocabulary_are_refused(embedder: Any) -> None:
    for tokens in ([VOCABULARY], [-1]):
        with pytest.raises(ValueError, match="vocabulary"):
            ask(embedder, [1], np.array(tokens))


def test_a_fault_ends_one_request_and_no_other(embedder: Any, forward: FakeForward) -> None:
    forward.failure = ValueError("out of order")
    code, message = ask(embedder, [3]).error()
    assert code == "UNAVAILABLE" and "out of order" in message
    forward.failure = None
    assert len(ask(embedder, [3]).vectors()) == 1


def test_long_inputs_wait_for_their_turn(embedder: Any, module: Any, forward: FakeForward) -> None:
    asked = [ask(embedder, [600] * 3) for _ in range(3 * module.CACHES_AT_ONCE)]
    assert [len(one.vectors()) for one in asked] == [3] * len(asked)
    assert 1 < forward.most_open <= module.CACHES_AT_ONCE


def test_cancelled_ones_make_room(embedder: Any, module: Any) -> None:
    asked = [ask(embedder, [600] * 500) for _ in range(2 * module.CACHES_AT_ONCE)]
    for one in asked:
        one.cancelled = True
    assert {one.error()[0] for one in asked} == {"CANCELLED"}
    assert len(ask(embedder, [600]).vectors()) == 1


def test_who_waits_is_not_forgotten(
    embedder: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIGN_OF_LIFE_SECONDS", 0)
    responses = list(ask(embedder, [600]).responses())
    assert len(responses) > 1
    assert not any("embedding" in response for response in responses[:-1])
