"""A running mesh as its users see it: REST, the `openai` client, and the processes to kill."""

import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import openai

from millrace_mesh import control
from millrace_mesh.layout import Layout

T = TypeVar("T")

# Seconds-long stand-ins for the demo's sizes: a model of 0.3 M parameters on a tenth of the
# corpus takes the same road.
RECIPE = {"vocabulary_size": 1024, "maximum_bytes": 1_200_000}
ARCHITECTURE = {
    "hidden_size": 64,
    "layers": 2,
    "attention_heads": 4,
    "key_value_heads": 2,
    "intermediate_size": 128,
    "context_length": 256,
}
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Mesh:
    """One mesh on ports of its own."""

    layout: Layout
    key: str

    def __post_init__(self) -> None:
        # Every request belongs to one trace, so that what follows from them can be told.
        self.trace_id = secrets.token_hex(16)
        traceparent = {"traceparent": f"00-{self.trace_id}-{secrets.token_hex(8)}-01"}
        self.rest = httpx.Client(
            base_url=f"{self.layout.gateway_url}/v1",
            headers={"Authorization": f"Bearer {self.key}", **traceparent},
            timeout=30,
        )
        self.openai = openai.OpenAI(
            base_url=f"{self.layout.gateway_url}/v1",
            api_key=self.key,
            max_retries=0,
            timeout=60,
            default_headers=traceparent,
        )

    def close(self) -> None:
        self.rest.close()
        self.openai.close()

    def get(self, path: str) -> Any:
        response = self.rest.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        response = self.rest.post(path, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    def pid(self, process: str) -> int:
        running = control.find(self.layout.home)
        assert running is not None
        processes = running.state["processes"]
        pid = next(p["pid"] for p in processes if p["name"] == process)
        assert pid is not None, f"{process} is about to be started again"
        return int(pid)

    def kill(self, process: str) -> int:
        """SIGKILL, as a machine that dies would; returns the pid that was killed."""
        pid = self.pid(process)
        os.kill(pid, signal.SIGKILL)
        return pid

    def start_run(self, model: str, dataset: str, **hyperparameters: Any) -> str:
        settings = {
            "total_steps": 40,
            "checkpoint_every_steps": 20,
            "batch_sequences": 8,
            "micro_batch_sequences": 8,
            "warmup_steps": 4,
            "seed": 7,
            **hyperparameters,
        }
        body = {
            "model": model,
            "dataset": dataset,
            "architecture": ARCHITECTURE,
            "hyperparameters": settings,
        }
        return str(self.post("/training/runs", body)["id"])

    def ended(self, path: str, timeout_seconds: float = 240) -> Any:
        """Wait until the resource has ended; return it."""
        return self.until(
            lambda: _if(self.get(path), lambda it: it["status"] in ENDED), path, timeout_seconds
        )

    def until(
        self, condition: Callable[[], T | None], what: str, timeout_seconds: float = 120
    ) -> T:
        """Poll until ``condition`` gives something true, through a gateway that may restart."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                found = condition()
            except (httpx.HTTPError, AssertionError):
                found = None
            if found:
                return found
            assert time.monotonic() < deadline, f"{what}: not within {timeout_seconds} s"
            time.sleep(0.2)

    def settled(self, model: str, version: int, timeout_seconds: float = 180) -> Any:
        """Wait until a rollout to ``version`` has settled; return it."""

        def found() -> Any:
            rollouts = self.get(f"/rollouts?model={model}")["data"]
            done = (r for r in rollouts if r["to_version"] == version and r["status"] == "settled")
            return next(done, None)

        return self.until(found, f"{model}@{version} settles", timeout_seconds)

    def facts(self, suffix: str = "") -> list[dict[str, Any]]:
        """The whole history of this tenant's facts, oldest first."""
        response = self.rest.get("/events", params={"follow": "false"})
        lines = response.text.splitlines()
        events = [_json(line[5:]) for line in lines if line.startswith("data:")]
        return [event for event in events if event["subject"].endswith(suffix)]


def _json(text: str) -> dict[str, Any]:
    document: dict[str, Any] = httpx.Response(200, text=text).json()
    return document


def _if(value: T, holds: Callable[[T], bool]) -> T | None:
    return value if holds(value) else None
