"""The registry's engine on a real tritonserver, and a client that asks it as the gateway does."""

import json
import os
import queue
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from millrace_mesh.triton import (
    GRPC_HEADER,
    TritonPorts,
    tritonserver_command,
    tritonserver_environment,
)
from millrace_registry.domain import Serving
from millrace_registry.repository import ModelRepository
from millrace_registry.triton_config import EngineSettings
from millrace_testkit.servers import free_port, wait_until

ENVIRONMENT = Path(__file__).parents[2] / ".venv-triton"
CONTROL_KEY = "key-of-the-tests"
MODEL = "default.tiny"


class ServedEngine:
    """One version of one model, loaded as the registry loads it."""

    def __init__(self, folder: Path, artifact: Path) -> None:
        self._repository = folder / "models"
        self._artifact = artifact
        self._log = folder / "log"
        self._ports = TritonPorts(grpc=free_port(), http=free_port(), metrics=free_port())
        self.address = f"127.0.0.1:{self._ports.grpc}"

    def start(self) -> None:
        self._repository.mkdir()
        command = tritonserver_command(
            ENVIRONMENT, self._repository, self._ports, CONTROL_KEY, exit_timeout_seconds=1
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=tritonserver_environment(ENVIRONMENT), stdout=log, stderr=log
            )
        with triton.InferenceServerClient(self.address) as client:
            wait_until(lambda: _is_live(client), 60, "tritonserver")
        self.load(MODEL)

    def load(self, model: str, serving: Serving = Serving(), artifact: Path | None = None) -> None:
        """Load the artifact, or another, as ``model``; again when that is to be run otherwise."""
        repository = ModelRepository(self._repository, EngineSettings(threads=1))
        repository.add_version(model, 1, artifact or self._artifact)
        repository.list_versions(model, [1], serving)
        with triton.InferenceServerClient(self.address) as client:
            client.load_model(model, headers={GRPC_HEADER: CONTROL_KEY}, client_timeout=120)

    @property
    def repository_folder(self) -> Path:
        return self._repository

    def unload(self, model: str) -> None:
        with triton.InferenceServerClient(self.address) as client:
            client.unload_model(model, headers={GRPC_HEADER: CONTROL_KEY})

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, prompt: str | Sequence[int], model: str = MODEL, **sampling: Any) -> "Answer":
        """The whole answer."""
        asked = self.begin(prompt, model, **sampling)
        try:
            return asked.answer()
        finally:
            asked.close()

    def begin(self, prompt: str | Sequence[int], model: str = MODEL, **sampling: Any) -> "Asked":
        return Asked(self.address, model, prompt, sampling)


def _is_live(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live(client_timeout=5))
    except triton.InferenceServerException:
        return False


@dataclass
class Answer:
    """``pieces`` are the texts of the responses; ``error`` is what it ended with instead."""

    pieces: list[str] = field(default_factory=list)
    token_count: int = 0
    finish_reason: str = ""
    prompt_token_count: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    prompt_logprobs: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> list[int]:
        return [entry["id"] for entry in self.logprobs]

    def add(self, result: triton.InferResult) -> None:
        self.pieces.append(_text(result, "text"))
        self.token_count += int(result.as_numpy("token_count")[0])
        self.logprobs += json.loads(_text(result, "logprobs") or "[]")
        self.finish_reason = _text(result, "finish_reason")
        if self.finish_reason:
            self.prompt_token_count = int(result.as_numpy("prompt_token_count")[0])
            self.prompt_logprobs = json.loads(_text(result, "prompt_logprobs") or "[]")
            assert json.loads(_text(result, "timing"))["total_seconds"] > 0


class Asked:
    """One request on its way."""

    def __init__(
        self, address: str, model: str, prompt: str | Sequence[int], sampling: Any
    ) -> None:
        self._heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client = triton.InferenceServerClient(address)
        self._client.start_stream(lambda result, error: self._heard.put((result, error)))
        self._client.async_stream_infer(model, _inputs(prompt, sampling))

    def next(self) -> triton.InferResult:
        """The next response.

        Raises:
            InferenceServerException: it was an error.
        """
        result, error = self._heard.get(timeout=60)
        if error is not None:
            raise error
        return result

    @property
    def unread(self) -> int:
        """How many responses have come and were not read."""
        return self._heard.qsize()

    def answer(self) -> Answer:
        answer = Answer()
        while not answer.finish_reason:
            try:
                answer.add(self.next())
            except triton.InferenceServerException as error:
                answer.error = error.message()
                return answer
        return answer

    def close(self) -> None:
        """Cancels it, when it has not ended."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def _inputs(prompt: str | Sequence[int], sampling: Any) -> list[triton.InferInput]:
    given = triton.InferInput("sampling", [1], "BYTES")
    given.set_data_from_numpy(np.array([json.dumps(sampling).encode()], np.object_))
    if isinstance(prompt, str):
        asked = triton.InferInput("prompt", [1], "BYTES")
        asked.set_data_from_numpy(np.array([prompt.encode()], np.object_))
    else:
        asked = triton.InferInput("input_ids", [len(prompt)], "INT64")
        asked.set_data_from_numpy(np.array(prompt, np.int64))
    return [asked, given]


def _text(result: triton.InferResult, name: str) -> str:
    found = result.as_numpy(name)
    return "" if found is None else str(found[0].decode())


def is_installed() -> bool:
    return os.access(ENVIRONMENT / "tritonserver" / "bin" / "tritonserver", os.X_OK)
