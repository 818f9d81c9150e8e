"""Clients of one gateway: some for each model, all the time, streaming or not."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

_PATIENCE_SECONDS = 60.0
_KEPT = 20


class Clients:
    """Ask from ``start`` to ``stop``, in a thread of their own.

    ``per_model`` of them ask each model, ``think_seconds`` after each answer.

    Attributes:
        asked: requests that have ended, by model.
        failures: the first of those that had no whole answer, as text.
        failed: how many there were.
    """

    def __init__(
        self,
        url: str,
        key: str,
        models: Sequence[str],
        per_model: int,
        think_seconds: float,
    ) -> None:
        self._url, self._key = url, key
        self._models, self._per_model = models, per_model
        self._think_seconds = think_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="clients")
        self.asked: Counter[str] = Counter()
        self.failures: list[str] = []
        self.failed = 0

    def are_all_answered(self) -> bool:
        """Whether each model answers, asked once."""
        return not any(asyncio.run(self._ask_each()))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._url,
            headers={"authorization": f"Bearer {self._key}"},
            timeout=_PATIENCE_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def _ask_each(self) -> list[str]:
        async with self._http() as http:
            return [await _ask(http, model, is_streamed=False) for model in self._models]

    async def _run(self) -> None:
        async with self._http() as http:
            asking = [
                self._ask_on(http, model, number)
                for model in self._models
                for number in range(self._per_model)
            ]
            await asyncio.gather(*asking)

    async def _ask_on(self, http: httpx.AsyncClient, model: str, number: int) -> None:
        while not self._stopped.is_set():
            try:
                failure = await _ask(http, model, is_streamed=number % 2 == 0)
            except httpx.HTTPError as error:
                failure = repr(error)
            self.asked[model] += 1
            if failure:
                self.failed += 1
                self.failures = [*self.failures, f"{model}: {failure}"][:_KEPT]
            await asyncio.sleep(self._think_seconds)


async def _ask(http: httpx.AsyncClient, model: str, *, is_streamed: bool) -> str:
    """Why it was not answered in full; empty otherwise."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "How many are there?"}],
        "max_tokens": 8,
        "temperature": 0,
        "stream": is_streamed,
        "logit_bias": {"1": 0},  # does nothing, but that its answer comes alone
    }
    response = await http.post("/v1/chat/completions", json=body)
    if response.status_code != httpx.codes.OK:
        return f"{response.status_code}: {response.text[:300]}"
    if not is_streamed:
        finished = response.json()["choices"][0]["finish_reason"]
        return "" if finished else f"it has no end: {response.text[:300]}"
    return _fault_of_stream(response.text)


def _fault_of_stream(text: str) -> str:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    if not lines or lines[-1] != "[DONE]":
        return f"the stream broke off: {text[-300:]}"
    documents: list[Any] = [json.loads(line) for line in lines[:-1]]
    faults = [document["error"] for document in documents if "error" in document]
    return f"the stream says {faults[0]}" if faults else ""
