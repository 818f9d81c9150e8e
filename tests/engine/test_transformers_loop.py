"""The engine for checkpoints in this process, with Triton played: who leaves, and what breaks."""

import importlib
import json
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import millrace_registry.engines
from millrace_registry.engine import TRANSFORMERS_FILES
from millrace_registry.triton_config import EngineSettings, generation_config
from tests.engine.tiny_model import TinyModel

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
ENGINES = Path(millrace_registry.engines.__path__[0])
LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 500}


class Sender:
    """Keeps what is sent: (outputs or error, whether it was the last)."""

    def __init__(self) -> None:
        self.sent: queue.Queue[tuple[Any, bool]] = queue.Queue()
        self.is_gone = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        self.sent.put((response, bool(flags)))

    def is_cancelled(self) -> bool:
        return self.is_gone

    def next(self) -> tuple[Any, bool]:
        return self.sent.get(timeout=60)

    def end(self) -> Any:
        """The last response."""
        response, is_last = self.next()
        while not is_last:
            response, is_last = self.next()
        return response


class Request:
    def __init__(self, sender: Sender, **sampling: Any) -> None:
        self._sender = sender
        self._inputs = {"prompt": "The import", "sampling": json.dumps(sampling)}

    def inputs(self) -> list[Any]:
        return [
            SimpleNamespace(
                name=lambda name=name: name,
                as_numpy=lambda text=text: np.array([text.encode()], np.object_),
            )
            for name, text in self._inputs.items()
        ]

    def get_response_sender(self) -> Sender:
        return self._sender

    def parameters(self) -> str:
        return ""

    def request_id(self) -> str:
        return ""


def played_triton() -> ModuleType:
    played: Any = ModuleType("triton_python_backend_utils")
    played.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    played.TritonModelException = RuntimeError
    played.Tensor = lambda name, value: (name, value[0])
    played.InferenceResponse = lambda tensors=(), error=None: error or dict(tensors)
    played.TritonError = type(
        "TritonError",
        (),
        {
            "__init__": lambda self, message, code: self.__dict__.update(
                message=message, code=code
            ),
            "INVALID_ARG": "INVALID_ARG",
            "CANCELLED": "CANCELLED",
            "UNAVAILABLE": "UNAVAILABLE",
        },
    )
    played.Logger = SimpleNamespace(log_error=lambda message: None)
    return played


@pytest.fixture
def engine(tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Places for two requests at once."""
    ours = [Path(name).stem for name in TRANSFORMERS_FILES]
    for name in ours:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", played_triton())
    monkeypatch.syspath_prepend(str(ENGINES))
    module = importlib.import_module("transformers_batching")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "artifact").symlink_to(tiny.model)
    config = generation_config("m", [1], EngineSettings(threads=1, max_sequences=2))
    parameters = {key: {"string_value": it.string_value} for key, it in config.parameters.items()}
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_repository": str(tmp_path),
            "model_version": "1",
        }
    )
    yield model
    model.finalize()
    for name in ours:
        sys.modules.pop(name, None)


def begin(engine: Any, **sampling: Any) -> Sender:
    sender = Sender()
    engine.execute([Request(sender, **sampling)])
    return sender


def test_who_goes_away_makes_room(engine: Any) -> None:
    first, second = begin(engine, **LONG), begin(engine, **LONG)
    first.next(), second.next()
    waiting = begin(engine, **{**LONG, "max_tokens": 3})
    first.is_gone = True
    assert (first.end().code, waiting.end()["token_count"] > 0) == ("CANCELLED", True)
    assert second.end()["finish_reason"] == b"length"


def test_when_generation_breaks_everybody_is_told(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = [begin(engine, **LONG) for _ in range(3)]
    running[0].next()

    def step(choose: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(engine.batch, "step", step)
    for sender in running:
        error = sender.end()
        assert error.code == "UNAVAILABLE"
        assert "out of memory" in error.message
    assert begin(engine, **LONG).end().code == "UNAVAILABLE", "also who comes later"
