"""One process, kept running: started, watched, its output read, started again when it ends."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import BinaryIO

from millrace_mesh import state
from millrace_mesh.log import MeshLog
from millrace_mesh.probes import NotReady
from millrace_mesh.processes import ProcessSpec
from millrace_mesh.restart import Backoff
from millrace_mesh.state import ProcessState

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True)
_PROBE_SECONDS = 0.2
_HEALTH_SECONDS = 5.0
_READ_BYTES = 65536
_LONGEST_LINE_BYTES = 64 * 1024


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
        self._process: subprocess.Popen[bytes] | None = None

    async def run(self) -> None:
        """Start it, and again whenever it ends, until ``stop``."""
        backoff = Backoff()
        while not self._stopping.is_set():
            started = time.monotonic()
            end = await self._run_once()
            if self._stopping.is_set():
                break
            backoff, delay = backoff.after_end(time.monotonic() - started)
            self._log.say(f"{self.spec.name} {end}; starting it again in {delay:g} s")
            self._change(state.WAITING, last_end=end)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
        self._change(state.STOPPED)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), for good."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and what it started, now, for good."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    async def _run_once(self) -> str:
        """One life of the process; returns how it ended."""
        reader, writer = os.pipe()
        try:
            process = _spawn(self.spec, writer)
        except OSError as error:
            os.close(reader)
            return f"could not be started: {error}"
        finally:
            os.close(writer)
        self._process = process
        self.state.starts += 1
        self._change(state.STARTING, pid=process.pid)
        output = _LineReader(reader, lambda line: self._log.write(self.spec.name, line))
        watcher = asyncio.create_task(self._watch())
        try:
            await _ended(process.pid)
        finally:
            watcher.cancel()
            # Before it is reaped its pid is still its own, so this can hit nobody else.
            _kill_group(process.pid)
            code = process.wait()
            self._process = None
            self.ready.clear()
            output.close()
        return _describe(code)

    async def _watch(self) -> None:
        await self._wait_until_ready()
        self._change(state.READY, ready_at=time.time())
        self.ready.set()
        if self.spec.unhealthy_seconds is not None:
            await self._restart_when_unhealthy(self.spec.unhealthy_seconds)

    async def _wait_until_ready(self) -> None:
        while True:
            with contextlib.suppress(NotReady):
                await self.spec.is_ready()
                return
            await asyncio.sleep(_PROBE_SECONDS)

    async def _restart_when_unhealthy(self, limit_seconds: float) -> None:
        healthy_at = time.monotonic()
        while True:
            await asyncio.sleep(min(_HEALTH_SECONDS, limit_seconds / 2))
            try:
                await self.spec.is_ready()
                healthy_at = time.monotonic()
            except NotReady as error:
                if time.monotonic() - healthy_at >= limit_seconds:
                    self._log.say(f"{self.spec.name} is unhealthy ({error}); restarting it")
                    self._signal(signal.SIGTERM)
                    await asyncio.sleep(self.spec.stop_seconds)
                    self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if number == signal.SIGKILL:
            _kill_group(self._process.pid)
        else:
            self._process.send_signal(number)

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
        if ready_at is not None:
            self.state.ready_at = ready_at
        if last_end is not None:
            self.state.last_end = last_end
        self._on_change()


class _LineReader:
    """Reads a pipe as it fills and hands on whole lines."""

    def __init__(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._on_line = on_line
        self._rest = b""
        self._open = True
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def close(self) -> None:
        """Read what is left, and close. Whoever still holds the other end is not waited for."""
        while self._open and self._read():
            pass
        self._finish()

    def _read(self) -> bool:
        try:
            chunk = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._finish()
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LONGEST_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._on_line(line.decode(errors="replace").rstrip("\r"))
        return True

    def _finish(self) -> None:
        if not self._open:
            return
        self._open = False
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))


def _spawn(spec: ProcessSpec, output: int | BinaryIO) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()
    return subprocess.Popen(
        list(spec.command),
        env=dict(spec.environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A session of its own: Ctrl-C reaches the supervisor alone, which stops all in order.
        start_new_session=True,
        preexec_fn=lambda: _die_with(supervisor),
    )


def _die_with(supervisor: int) -> None:
    """In the child, before exec: have the kernel kill it when the supervisor ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)  # it ended before prctl took effect


async def _ended(pid: int) -> None:
    """Wait until a child has ended, without reaping it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    return f"was ended by {signal.Signals(-code).name}"
