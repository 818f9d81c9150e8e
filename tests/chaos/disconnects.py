"""Clients that leave at any moment: how soon the engine's slot is free, and what is left behind.

A real Triton whose engine has one slot, and the gateway before it. Each client asks for an answer
of some seconds and leaves: before its first token or midway, streaming or not, by closing, by a
reset or by closing its half of the connection. At that moment the next two requests begin, one
after the other, at Triton itself. Neither can have its token before the slot is free, and a
request of the client's that came late would stand before the second; so what is measured is never
less than what it took. A client that stays shows that they do wait.
"""

import itertools
import json
import random
import re
import socket
import struct
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from millrace_registry.triton_config import EngineSettings
from millrace_testkit.servers import wait_until
from tests.bench import engine_cache, model, processes
from tests.bench.engine_cache import one_token
from tests.bench.processes import Server
from tests.chaos import soak
from tests.chaos.outcome import Outcome, Say, percentile

MOST_SECONDS = 0.250
_MODEL = Path(".millrace/chaos/long-model")
_CONTEXT_TOKENS = 4096
_ANSWER_TOKENS = 3000
_MOST_STAY_SECONDS = 0.4
_MOST_PIECES = 100
# Longer than it takes for the first token: what is drawn is on both sides of it.
_EARLY_SECONDS = 0.02
_CONTROL_SECONDS = 4 * MOST_SECONDS
_SAMPLE_EVERY = 10
_PATIENCE_SECONDS = 30.0
_LEAVES = ("close", "reset", "half-close")
_MOMENTS = ("early", "midway")
_WORD = [1000, 1001]
# From so many runs on memory is judged: filling the cache takes most of a minute.
_LONG_RUNS = 300


@dataclass(frozen=True)
class Visit:
    """What one client does.

    Attributes:
        path: which API it asks.
        answers: how many it asks for at once; the engine has a slot for one.
        moment: "early", within the time of a first token; or "midway".
        leave: how it goes away.
        stay_seconds: from asking to leaving; a stream that leaves midway counts ``pieces``.
    """

    path: str
    is_streamed: bool
    answers: int
    moment: str
    leave: str
    stay_seconds: float
    pieces: int

    @property
    def kind(self) -> str:
        how = "streamed" if self.is_streamed else "whole"
        return f"{how}_{self.moment}_{self.leave.replace('-', '_')}"

    def body(self, prompt: str) -> dict[str, Any]:
        common = {"model": processes.MODEL, "stream": self.is_streamed, "temperature": 0}
        if self.path == "responses":
            return {**common, "input": prompt, "max_output_tokens": _ANSWER_TOKENS}
        several = {**common, "n": self.answers, "max_tokens": _ANSWER_TOKENS}
        if self.path == "completions":
            return {**several, "prompt": prompt}
        return {**several, "messages": [{"role": "user", "content": prompt}]}


@dataclass
class Found:
    """What was measured.

    Attributes:
        seconds: from each leaving until the slot was free, by the kind of visit.
        too_early: visits whose answer was complete before they could leave; they do not count.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    samples: list[soak.Sample] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    too_early: int = 0

    @property
    def all_seconds(self) -> Sequence[float]:
        return list(itertools.chain.from_iterable(self.seconds.values()))


class Slot:
    """The engine's only slot, seen by asking for it."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def seconds_until_free(self) -> float:
        """Until two requests, one after the other, have had their token."""
        started = time.perf_counter()
        for _ in range(2):
            self._ask()
        return time.perf_counter() - started

    def is_free_within(self, seconds: float) -> bool:
        try:
            self._ask(seconds)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return False
        return True

    def _ask(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        asked = self._stub.ModelStreamInfer(iter([one_token(_WORD)]), timeout=patience_seconds)
        (answer,) = asked
        assert not answer.error_message, answer.error_message


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Let ``runs`` clients leave."""
    artifact = _artifact()
    found = Found()
    with (
        processes.triton_server(directory, artifact, EngineSettings(max_sequences=1)) as endpoint,
        processes.gateway(
            directory / "gateway", endpoint, module="tests.chaos.counted_gateway"
        ) as gateway,
        _slot(endpoint) as slot,
    ):
        if runs >= _LONG_RUNS:
            engine_cache.fill(endpoint, say)
        base = _base(gateway, slot)
        if not _is_held_by_who_stays(gateway, slot):
            found.violations.append("the slot was free although its client had not left")
        tasks = _metric(gateway, "tasks")
        _visit_all(list(_drawn(runs, seed)), gateway, slot, found, say)
        found.violations += _left_behind(gateway, tasks)
    slow = [seconds for seconds in found.all_seconds if seconds > MOST_SECONDS]
    if slow:
        found.violations.append(f"{len(slow)} slots were free only after up to {max(slow):.3f} s")
    if runs >= _LONG_RUNS:
        found.violations += soak.rising(found.samples)
    counted = len(found.all_seconds)
    return Outcome("disconnects", counted, found.violations, _figures(found, base))


def _drawn(runs: int, seed: int) -> Iterator[Visit]:
    """All kinds in turn, each drawn in its details."""
    draw = random.Random(seed)
    kinds = list(itertools.product((True, False), _MOMENTS, _LEAVES))
    for number in range(runs):
        is_streamed, moment, leave = kinds[number % len(kinds)]
        longest = _EARLY_SECONDS if moment == "early" else _MOST_STAY_SECONDS
        path = draw.choice(("chat/completions", "completions", "responses"))
        yield Visit(
            path,
            is_streamed,
            1 if path == "responses" else draw.choice((1, 1, 5)),
            moment,
            leave,
            draw.uniform(0, longest),
            draw.randint(1, _MOST_PIECES),
        )


def _visit_all(
    visits: Sequence[Visit], gateway: Server, slot: Slot, found: Found, say: Say
) -> None:
    for number, visit in enumerate(visits, 1):
        if _visit(visit, number, gateway):
            found.seconds.setdefault(visit.kind, []).append(slot.seconds_until_free())
        else:
            found.too_early += 1
        if number % _SAMPLE_EVERY == 0:
            found.samples += _samples(gateway, number)
        if number % 100 == 0:
            say(f"{number} left, at most {max(found.all_seconds, default=0.0):.3f} s")


def _visit(visit: Visit, number: int, gateway: Server) -> bool:
    """Ask and leave; false when the answer was complete before."""
    with _asked(visit, f"visit {number}", gateway) as connection:
        if visit.is_streamed and visit.moment == "midway":
            content = _read(connection, visit.pieces)
            is_over = _is_whole(content)
        else:
            time.sleep(visit.stay_seconds)
            is_over = _is_over(connection)
        _leave(connection, visit.leave)
    return not is_over


@contextmanager
def _asked(visit: Visit, prompt: str, gateway: Server) -> Iterator[socket.socket]:
    content = json.dumps(visit.body(prompt)).encode()
    head = (
        f"POST /v1/{visit.path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(content)}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {gateway.key}\r\n\r\n"
    )
    connection = socket.create_connection(_address(gateway), timeout=_PATIENCE_SECONDS)
    try:
        connection.sendall(head.encode() + content)
        yield connection
    finally:
        # Who has closed a half stays connected, and is the only one for whom this does anything.
        connection.close()


def _read(connection: socket.socket, pieces: int) -> bytes:
    """What comes until so many events are there."""
    content = b""
    while content.count(b"\ndata: ") < pieces:
        more = connection.recv(65536)
        assert more, f"the stream ended with {content[-300:]!r}"
        content += more
        assert content.startswith(b"HTTP/1.1 200"), content
    return content


def _is_over(connection: socket.socket) -> bool:
    """Whether the end of the answer has come; of a whole one all comes at once."""
    connection.setblocking(False)
    content = b""
    try:
        while more := connection.recv(65536):
            content += more
    except BlockingIOError:
        return _is_whole(content)
    finally:
        connection.setblocking(True)
    raise ConnectionError(f"the connection ended with {content[-300:]!r}")


def _is_whole(content: bytes) -> bool:
    ends = (b"data: [DONE]", b"response.completed", b'"usage":{')
    return any(end in content for end in ends)


def _leave(connection: socket.socket, how: str) -> None:
    if how == "half-close":
        connection.shutdown(socket.SHUT_WR)
    if how == "reset":  # unsent and unread data is dropped, and RST sent
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how != "half-close":
        connection.close()


def _base(gateway: Server, slot: Slot) -> float:
    """What the slot costs to ask for when it is free; all are warm then."""
    visit = Visit("chat/completions", True, 1, "midway", "close", 0.0, 5)
    for number in range(20):
        _visit(visit, -number, gateway)
        slot.seconds_until_free()
    return min(slot.seconds_until_free() for _ in range(5))


def _is_held_by_who_stays(gateway: Server, slot: Slot) -> bool:
    """Whether the slot stays taken after the longest stay, when the client does not leave."""
    visit = Visit("chat/completions", True, 1, "midway", "close", 0.0, 1)
    with _asked(visit, "control", gateway) as connection:
        _read(connection, 1)
        time.sleep(_MOST_STAY_SECONDS)
        is_held = not slot.is_free_within(_CONTROL_SECONDS)
        assert not _is_over(connection), "the control's answer is too short"
    slot.seconds_until_free()
    return is_held


def _left_behind(gateway: Server, tasks: float) -> list[str]:
    """A sentence for each thing that the gateway still has."""

    def is_idle() -> bool:
        return not _metric(gateway, "millrace_generations_active") and (
            _metric(gateway, "tasks") <= tasks
        )

    try:
        wait_until(is_idle, 5, "the gateway is idle")
    except TimeoutError:
        now = _metric(gateway, "tasks")
        active = _metric(gateway, "millrace_generations_active")
        return [f"the gateway has {now:g} tasks, before {tasks:g}, and {active:g} generations"]
    return []


def _metric(gateway: Server, name: str) -> float:
    host, port = _address(gateway)
    with urllib.request.urlopen(f"http://{host}:{port}/metrics") as response:
        text = response.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, f"there is no metric {name}"
    return float(found[1])


def _samples(gateway: Server, number: int) -> list[soak.Sample]:
    """The gateway, and Triton with its engine."""
    pids = {"gateway": gateway.pid, "triton": processes.triton_pid()}
    return [soak.sample_of(name, pid, number) for name, pid in pids.items()]


def _figures(found: Found, base: float) -> dict[str, float | int | str]:
    rises = {
        name.replace("_per_swap", "_per_visit"): value
        for name, value in soak.slopes(found.samples).items()
        if name.endswith("_per_swap")
    }
    return {
        "slot_free_p50_seconds": percentile(found.all_seconds, 0.5),
        "slot_free_p99_seconds": percentile(found.all_seconds, 0.99),
        "slot_free_slowest_seconds": max(found.all_seconds, default=0.0),
        **{
            f"slowest_{kind}_seconds": max(seconds)
            for kind, seconds in sorted(found.seconds.items())
        },
        "two_requests_to_a_free_slot_seconds": base,
        "answers_complete_too_early": found.too_early,
        **rises,
    }


@contextmanager
def _slot(endpoint: str) -> Iterator[Slot]:
    slot = Slot(endpoint)
    try:
        yield slot
    finally:
        slot.close()


def _artifact() -> Path:
    """A model whose answers can last for seconds; made once.

    Each plugin of OpenVINO gives the thread that loads it an alternate signal stack.
    """
    with ThreadPoolExecutor(max_workers=1) as own_thread:
        return own_thread.submit(model.make, _MODEL, _CONTEXT_TOKENS).result()


def _address(gateway: Server) -> tuple[str, int]:
    host, port = gateway.url.removeprefix("http://").removesuffix("/v1").split(":")
    return host, int(port)
