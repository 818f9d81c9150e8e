"""Clients at work while services are restarted: every kind of request, and none may fail.

No REST client retries; the gRPC client has the retry policy that the README tells clients to
have. A stream may end with the error that says that the gateway was restarted; an
event stream may end, and is taken up again after the last event that it gave.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import openai

from millrace.trainer.v1 import service_pb2, service_pb2_grpc
from millrace_client import sse
from millrace_runtime.channel import SERVICE_CONFIG
from tests.e2e.lifecycle import Mesh

RESTARTING = "gateway_restarting"
_PAUSE_SECONDS = 0.25
_FILE_PAUSE_SECONDS = 1.0
_DATASET_PAUSE_SECONDS = 8.0  # each starts a job, which is then cancelled
_TIMEOUT_SECONDS = 60.0
_PROMPT = "import"
_EVENTS = "events"
_FILE_BYTES = 300_000


class Load:
    """Threads that ask without pause, from ``start`` to ``stop``; then it says what they saw.

    Attributes:
        failures: a sentence for each request that failed.
        requests: how many were made, by what they asked for.
        seconds: of each request but the event streams, which last as long as their gateway.
        restarted_streams: ended with the typed error.
        resumed_streams: event streams that ended and were taken up again.
    """

    def __init__(self, mesh: Mesh, model: str) -> None:
        self._mesh = mesh
        self._model = model
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._followed: list[str] = []
        self.failures: list[str] = []
        self.requests: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.restarted_streams = 0
        self.resumed_streams = 0

    def start(self) -> None:
        asks: list[tuple[Callable[[openai.OpenAI, int], None], float]] = [
            (self._chat, _PAUSE_SECONDS),
            (self._chat_stream, _PAUSE_SECONDS),
            (self._completion, _PAUSE_SECONDS),
            (self._models, _PAUSE_SECONDS),
            (self._lists, _PAUSE_SECONDS),
            (self._file, _FILE_PAUSE_SECONDS),
            (self._dataset, _DATASET_PAUSE_SECONDS),
        ]
        targets = [lambda a=ask, p=pause: self._repeat(a, p) for ask, pause in asks]
        targets += [self._call_grpc, self._follow]
        self._threads = [threading.Thread(target=target) for target in targets]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._compare_history()

    def _repeat(self, ask: Callable[[openai.OpenAI, int], None], pause_seconds: float) -> None:
        name = ask.__name__.strip("_")
        with openai.OpenAI(
            base_url=f"{self._mesh.layout.gateway_url}/v1",
            api_key=self._mesh.key,
            max_retries=0,
            timeout=_TIMEOUT_SECONDS,
        ) as client:
            for number in itertools.count():
                if self._stop.wait(pause_seconds):
                    return
                self._attempt(name, lambda n=number: ask(client, n))  # type: ignore[misc]

    def _attempt(self, name: str, ask: Callable[[], None]) -> None:
        started = time.monotonic()
        try:
            ask()
        except Exception as error:  # whatever it is, the client was failed
            self._failed(name, error, time.monotonic() - started)
        with self._lock:
            self.requests[name] += 1
            if name != _EVENTS:
                self.seconds.append(time.monotonic() - started)

    def _failed(self, name: str, error: Exception, seconds: float) -> None:
        cause = f", of {error.__cause__!r}" if error.__cause__ else ""
        clock = time.strftime("%H:%M:%S", time.gmtime())
        with self._lock:
            self.failures.append(f"{name} after {seconds:.1f} s at {clock}: {error!r}{cause}")

    def _chat(self, client: openai.OpenAI, _number: int) -> None:
        answer = client.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": _PROMPT}], max_tokens=8
        )
        assert answer.choices[0].finish_reason in ("stop", "length")

    def _chat_stream(self, client: openai.OpenAI, number: int) -> None:
        stream = client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": _PROMPT}],
            max_tokens=8 if number % 4 else 200,
            stream=True,
        )
        reason = None
        try:
            for chunk in stream:
                reason = chunk.choices[0].finish_reason
        except openai.APIError as error:
            if error.code != RESTARTING:
                raise
            with self._lock:
                self.restarted_streams += 1
            return
        assert reason in ("stop", "length"), f"the stream ended with {reason}"

    def _completion(self, client: openai.OpenAI, _number: int) -> None:
        answer = client.completions.create(model=self._model, prompt=_PROMPT, max_tokens=8)
        assert answer.choices[0].finish_reason in ("stop", "length")

    def _models(self, client: openai.OpenAI, _number: int) -> None:
        assert self._model in [model.id for model in client.models.list()]

    def _lists(self, client: openai.OpenAI, number: int) -> None:
        path = ("/training/runs", "/datasets", "/compressions", "/rollouts", "/fine_tuning/jobs")
        client.get(path[number % len(path)], cast_to=httpx.Response)

    def _file(self, client: openai.OpenAI, number: int) -> None:
        content = f"{number} ".encode() * (_FILE_BYTES // len(f"{number} "))
        made = client.files.create(file=(f"{number}.txt", content), purpose="user_data")
        assert client.files.content(made.id).read() == content
        client.files.delete(made.id)

    def _dataset(self, client: openai.OpenAI, number: int) -> None:
        body: dict[str, Any] = {
            "source": {"type": "python_standard_library"},
            "recipe": {"maximum_bytes": 100_000 + number},
        }
        made = client.post("/datasets", body=body, cast_to=httpx.Response).json()
        client.post(f"/datasets/{made['id']}/cancel", body={}, cast_to=httpx.Response)

    def _call_grpc(self) -> None:
        """Through the public gRPC port."""
        request = service_pb2.ListRunsRequest(parent="tenants/default", page_size=5)
        metadata = (("authorization", f"Bearer {self._mesh.key}"),)
        address = self._mesh.layout.address("gateway.grpc")
        options = [("grpc.service_config", SERVICE_CONFIG)]
        with grpc.insecure_channel(address, options=options) as channel:
            stub = service_pb2_grpc.TrainerServiceStub(channel)
            while not self._stop.wait(_PAUSE_SECONDS):
                self._attempt(
                    "grpc",
                    lambda: stub.ListRuns(request, metadata=metadata, timeout=30),
                )

    def _follow(self) -> None:
        """Every fact from the beginning, through streams that end; none is given twice."""
        while not self._stop.is_set():
            self._attempt(_EVENTS, self._follow_once)
            with self._lock:
                self.resumed_streams += 1

    def _follow_once(self) -> None:
        after = {"Last-Event-ID": self._followed[-1]} if self._followed else {}
        url = f"{self._mesh.layout.gateway_url}/v1/events"
        headers = {"authorization": f"Bearer {self._mesh.key}", **after}
        with httpx.stream("GET", url, headers=headers, timeout=_TIMEOUT_SECONDS) as response:
            assert response.status_code == 200, response.read()
            for event in sse.parse(self._until_stop(response)):
                assert event.event != "error", event.data
                self._followed.append(event.id)

    def _until_stop(self, response: httpx.Response) -> Any:
        for line in response.iter_lines():
            yield line
            if self._stop.is_set() and not line:
                return

    def _compare_history(self) -> None:
        facts = [fact["id"] for fact in self._mesh.facts()]
        if len(set(self._followed)) != len(self._followed):
            self.failures.append("events: the followed stream gave a fact twice")
        missing = set(facts[: facts.index(self._followed[-1]) + 1]) - set(self._followed)
        if missing:
            self.failures.append(f"events: the followed stream left out {len(missing)} facts")
