"""One process, kept running: watched, started again when it ends, replaced when asked."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable

from millrace_mesh import state
from millrace_mesh.life import Life
from millrace_mesh.log import MeshLog
from millrace_mesh.probes import NotReady
from millrace_mesh.processes import ProcessSpec
from millrace_mesh.restart import Backoff
from millrace_mesh.state import ProcessState

REPLACEMENT_TIMEOUT_SECONDS = 60.0
_HEALTH_SECONDS = 5.0


class NotReplaced(Exception):
    """The process runs on as it was; the message says why none took its place."""


class Child:
    """Keeps one process running until ``stop``. Lives in one event loop's thread."""

    def __init__(
        self, spec: ProcessSpec, log: MeshLog, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.spec = spec
        self.state = ProcessState(spec.name, spec.address)
        self.ready = asyncio.Event()
        self._log = log
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._current: Life | None = None
        self._lives: set[Life] = set()  # more than one while one follows another

    async def run(self) -> None:
        """Start it, and again whenever it ends, until ``stop``."""
        backoff = Backoff()
        while not self._stopping.is_set():
            started = time.monotonic()
            end = await self._live()
            if self._stopping.is_set():
                break
            if self._current is not None:  # its successor runs already
                continue
            was_ready = self.state.ready_at is not None
            backoff, delay = backoff.after_end(time.monotonic() - started, was_ready)
            self._log.say(f"{self.spec.name} {end}; starting it again in {delay:g} s")
            self._change(state.WAITING, last_end=end)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
        await asyncio.gather(*(life.end for life in self._lives))
        self._change(state.STOPPED)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), for good."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it started, now, for good."""
        self._end(signal.SIGKILL)

    async def replace(self, timeout_seconds: float = REPLACEMENT_TIMEOUT_SECONDS) -> float:
        """Start another life, and end the old one once the new one is ready.

        Returns the seconds that the old one took from SIGTERM to its end.

        Raises:
            NotReplaced: the new one ended, or was not ready in time.
        """
        if self.spec.listener is None:
            raise NotReplaced(f"{self.spec.name} cannot be replaced while it runs")
        new = await self._successor(timeout_seconds)
        # It may have ended, and been started again, in between.
        old, self._current = self._current, new
        self._change(state.READY, pid=new.pid, ready_at=time.time())
        self.ready.set()
        return 0.0 if old is None else await self._retire(old)

    async def _successor(self, timeout_seconds: float) -> Life:
        name = self.spec.name
        if self._stopping.is_set():
            raise NotReplaced(f"{name} is being stopped")
        try:
            life = self._begin()
        except OSError as error:
            raise NotReplaced(f"{name} could not be started: {error}") from error
        ready = asyncio.create_task(life.until_ready())
        try:
            await asyncio.wait(
                (ready, life.end), timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if life.end.done():
                raise NotReplaced(f"the new {name} {life.end.result()}")
            if not ready.done():
                raise NotReplaced(f"the new {name} was not ready after {timeout_seconds:g} s")
        except BaseException:
            life.signal(signal.SIGKILL)
            raise
        finally:
            ready.cancel()
        return life

    async def _retire(self, life: Life) -> float:
        started = time.monotonic()
        life.signal(signal.SIGTERM)
        _, late = await asyncio.wait((life.end,), timeout=self.spec.stop_seconds)
        if late:
            self._log.say(f"the old {self.spec.name} does not stop; killing it")
            life.signal(signal.SIGKILL)
            await asyncio.wait((life.end,))
        return time.monotonic() - started

    async def _live(self) -> str:
        """Until the current life ends, begun here if there is none; returns how it ended."""
        watcher = None
        if self._current is None:
            try:
                self._current = self._begin()
            except OSError as error:
                return f"could not be started: {error}"
            self.state.starts += 1
            self._change(state.STARTING, pid=self._current.pid)
            watcher = asyncio.create_task(self._watch(self._current))
        life = self._current
        try:
            end = await asyncio.shield(life.end)
        finally:
            if watcher is not None:
                watcher.cancel()
        if life is self._current:
            self._current = None
            self.ready.clear()
        return end

    def _begin(self) -> Life:
        life = Life(self.spec, lambda line: self._log.write(self.spec.name, line))
        self._lives.add(life)
        life.end.add_done_callback(lambda _end: self._lives.discard(life))
        return life

    def _end(self, number: signal.Signals) -> None:
        self._stopping.set()
        for life in self._lives:
            life.signal(number)

    async def _watch(self, life: Life) -> None:
        await life.until_ready()
        self._change(state.READY, ready_at=time.time())
        self.ready.set()
        if self.spec.unhealthy_seconds is not None:
            await self._restart_when_unhealthy(life, self.spec.unhealthy_seconds)

    async def _restart_when_unhealthy(self, life: Life, limit_seconds: float) -> None:
        healthy_at = time.monotonic()
        while True:
            await asyncio.sleep(min(_HEALTH_SECONDS, limit_seconds / 2))
            try:
                await self.spec.is_ready()
                healthy_at = time.monotonic()
            except NotReady as error:
                if time.monotonic() - healthy_at >= limit_seconds:
                    self._log.say(f"{self.spec.name} is unhealthy ({error}); restarting it")
                    life.signal(signal.SIGTERM)
                    await asyncio.sleep(self.spec.stop_seconds)
                    life.signal(signal.SIGKILL)

    def _change(
        self,
        phase: str,
        *,
        pid: int | None = None,
        ready_at: float | None = None,
        last_end: str | None = None,
    ) -> None:
        self.state.phase = phase
        if phase in (state.STARTING, state.WAITING, state.STOPPED):
            self.state.pid, self.state.ready_at = pid, None
        if pid is not None:
            self.state.pid = pid
        if ready_at is not None:
            self.state.ready_at = ready_at
        if last_end is not None:
            self.state.last_end = last_end
        self._on_change()
