"""A steady, light traffic through the ``openai`` package, so that canaries have data."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from millrace_mesh import control
from millrace_mesh.demo.screen import DemoFailed
from millrace_mesh.demo.session import Session
from millrace_runtime import telemetry

_ON_THE_WAY = ("gateway", "triton")
_PROMPTS = ("import os\n", "def main(", "class Reader:\n", "    return ", "for name in ")
_ANSWER_TOKENS = 8
_VERSION_HEADER = "x-millrace-version"


class Traffic:
    """One thread that asks one question after another, and counts."""

    def __init__(self, session: Session) -> None:
        self.answered: Counter[str] = Counter()  # by model@version
        self.errors: list[str] = []
        self._session = session
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._restarts = _restarts(session)
        self._traceparent = telemetry.current_traceparent()

    def start(self) -> None:
        """Begin to ask, unless it has begun."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def summary(self) -> str:
        versions = " ".join(f"{name}:{count}" for name, count in sorted(self.answered.items()))
        return f"answers {versions or 'none yet'}, failed {len(self.errors)}"

    def require_no_failure(self) -> None:
        """No request may have failed, unless what it went through was killed and restarted.

        Raises:
            DemoFailed: one did.
        """
        if self.errors and _restarts(self._session) == self._restarts:
            raise DemoFailed(
                f"{len(self.errors)} of {len(self.errors) + self.answered.total()} requests "
                f"failed; the first: {self.errors[0]}"
            )

    def _run(self) -> None:
        pause = 1 / self._session.plan.requests_per_second
        with telemetry.span("traffic", traceparent=self._traceparent):
            asked = 0
            while not self._stop.is_set():
                started = time.monotonic()
                self._ask(_PROMPTS[asked % len(_PROMPTS)], seed=asked)
                asked += 1
                self._stop.wait(max(0.0, pause - (time.monotonic() - started)))

    def _ask(self, prompt: str, seed: int) -> None:
        try:
            response = self._session.client.completions.with_raw_response.create(
                model=self._session.plan.model,
                prompt=prompt,
                max_tokens=_ANSWER_TOKENS,
                seed=seed,
            )
            self.answered[response.headers[_VERSION_HEADER]] += 1
        except openai.OpenAIError as error:
            self.errors.append(f"{type(error).__name__}: {error}")


@contextmanager
def ready(session: Session) -> Iterator[Traffic]:
    """Traffic that somebody may start, and that stops with the block."""
    traffic = Traffic(session)
    try:
        yield traffic
    finally:
        traffic.stop()


def _restarts(session: Session) -> int:
    running = control.find(session.layout.home)
    processes = running.state.get("processes", ()) if running is not None else ()
    return sum(p["restarts"] for p in processes if p["name"] in _ON_THE_WAY)
