"""One life of a process: from its start to its end, with its output read meanwhile."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable

from millrace_mesh.probes import NotReady
from millrace_mesh.processes import ProcessSpec

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True)
_PROBE_SECONDS = 0.2
_READ_BYTES = 65536
_LONGEST_LINE_BYTES = 64 * 1024


class Life:
    """Starts the process at once.

    Attributes:
        end: done when the process has ended and been reaped; its result says how it ended.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, spec: ProcessSpec, on_line: Callable[[str], None]) -> None:
        self._spec = spec
        reader, writer = os.pipe()
        try:
            self._process = _spawn(spec, writer)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._output = _LineReader(reader, on_line)
        self.end = asyncio.create_task(self._until_end())

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; SIGKILL goes to all that the process started, too."""
        if self.end.done():
            return
        if number == signal.SIGKILL:
            _kill_group(self.pid)
        else:
            self._process.send_signal(number)

    async def until_ready(self) -> None:
        """Return when this life, and no other at the same address, says that it is ready."""
        while True:
            with contextlib.suppress(NotReady):
                if await self._spec.is_ready() in (None, self.pid):
                    return
            await asyncio.sleep(_PROBE_SECONDS)

    async def _until_end(self) -> str:
        try:
            await _ended(self.pid)
        finally:
            # Before it is reaped its pid is still its own, so this can hit nobody else.
            _kill_group(self.pid)
            code = self._process.wait()
            self._output.close()
        return _describe(code)


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


def _spawn(spec: ProcessSpec, output: int) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()
    return subprocess.Popen(
        list(spec.command),
        env=dict(spec.environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[spec.listener.fileno()] if spec.listener else [],
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
