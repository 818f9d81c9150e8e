"""Runs a mesh: starts all in parallel, keeps all running, restarts on request, stops in order."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence

from millrace_mesh import processes, restart_request, retention, shared_secrets, state
from millrace_mesh.child import Child, NotReplaced
from millrace_mesh.layout import Layout, require_free_ports
from millrace_mesh.log import MeshLog, watched_stream
from millrace_mesh.nats import NotDurable
from millrace_mesh.probes import NotReady
from millrace_mesh.processes import ProcessSpec
from millrace_mesh.state import MeshState, RestartState
from millrace_runtime import signing_keys


class Supervisor:
    """The life of one mesh, in one event loop."""

    def __init__(self, layout: Layout, specs: Sequence[ProcessSpec], log: MeshLog) -> None:
        self._layout = layout
        self._log = log
        self._children = [Child(spec, log, self._save) for spec in specs]
        self._stop = asyncio.Event()
        self._stop_requests = 0
        self._restarting: asyncio.Task[None] | None = None
        self._state = MeshState(
            pid=os.getpid(),
            phase=state.STARTING,
            base_port=layout.base_port,
            gateway_url=layout.gateway_url,
            gateway_grpc=layout.address("gateway.grpc"),
            started_at=time.time(),
            processes=[child.state for child in self._children],
        )

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; the second one kills instead of draining.

        Raises:
            NotDurable: NATS could lose what it acknowledged; everything has been stopped.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.restart)
        runs = [asyncio.create_task(child.run()) for child in self._children]
        starting = asyncio.create_task(self._wait_until_ready())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        failed = starting.done() and starting.exception() is not None
        if not failed:
            await stopping
        starting.cancel()
        await self._stop_in_order()
        await asyncio.gather(*runs)
        self._set_phase(state.STOPPED)
        self._log.say("the mesh has stopped")
        if failed:
            starting.result()

    def stop(self) -> None:
        """Stop the mesh; a second call does not wait for anybody."""
        self._stop_requests += 1
        self._stop.set()
        if self._stop_requests > 1:
            for child in self._children:
                child.kill()

    def restart(self) -> None:
        """Restart what the request file names, one after the other; one request at a time."""
        if self._stop.is_set() or (self._restarting and not self._restarting.done()):
            return
        request = restart_request.read(self._layout.home.restart_request_file)
        self._state.restart = RestartState(request.id, list(request.services))
        self._restarting = asyncio.create_task(self._restart_in_turn(self._state.restart))

    async def _restart_in_turn(self, restart: RestartState) -> None:
        children = {child.spec.name: child for child in self._children}
        try:
            for name in restart.services:
                restart.current = name
                self._save()
                self._log.say(f"restarting {name}")
                seconds = await children[name].replace()
                restart.drain_seconds[name] = seconds
                self._log.say(f"{name} was restarted; the old one drained in {seconds:.1f} s")
        except (NotReplaced, KeyError) as error:
            restart.failure = (
                f"there is no process {error}" if isinstance(error, KeyError) else str(error)
            )
            self._log.say(restart.failure)
        except asyncio.CancelledError:
            restart.failure = "the mesh is being stopped"
            raise
        finally:
            restart.current, restart.is_done = "", True
            self._save()

    async def _wait_until_ready(self) -> None:
        await asyncio.gather(*(self._until_ready(child) for child in self._children))
        self._state.ready_at = time.time()
        self._set_phase(state.READY)
        seconds = self._state.ready_at - self._state.started_at
        self._log.say(
            f"the mesh is ready after {seconds:.1f} s: {self._layout.gateway_url} (REST), "
            f"{self._state.gateway_grpc} (gRPC)"
        )

    async def _until_ready(self, child: Child) -> None:
        await child.ready.wait()
        self._log.say(f"{child.spec.name} is ready at {child.spec.address}")
        if child.spec.confirm is not None:
            sentence = await self._confirm(child)
            self._state.durability = sentence
            self._log.say(sentence)

    async def _confirm(self, child: Child) -> str:
        assert child.spec.confirm is not None
        while True:
            try:
                return await child.spec.confirm()
            except NotReady:
                await child.ready.wait()  # it ended in between; its next life is asked
                await asyncio.sleep(0)
            except NotDurable as error:
                self._state.failure = str(error)
                self._log.say(str(error))
                raise

    async def _stop_in_order(self) -> None:
        self._set_phase(state.STOPPING)
        self._log.say("stopping; once more to kill")
        if self._restarting is not None:
            self._restarting.cancel()
        for child in self._children:
            if child.spec.listener is not None:
                child.spec.listener.close()  # what nobody will accept must not queue
        for tier in sorted({child.spec.tier for child in self._children}, reverse=True):
            children = [child for child in self._children if child.spec.tier == tier]
            for child in children:
                child.stop()
            await asyncio.gather(*(self._await_end(child) for child in children))

    async def _await_end(self, child: Child) -> None:
        deadline = time.monotonic() + child.spec.stop_seconds
        while child.state.phase != state.STOPPED:
            if time.monotonic() > deadline:
                self._log.say(f"{child.spec.name} does not stop; killing it")
                child.kill()
                deadline = float("inf")
            await asyncio.sleep(0.05)

    def _set_phase(self, phase: str) -> None:
        self._state.phase = phase
        self._save()

    def _save(self) -> None:
        state.write(self._layout.home.state_file, self._state)


def run(layout: Layout, *, quiet: bool = False) -> None:
    """Be the supervisor of ``layout`` in this process, until told to stop.

    Raises:
        AlreadyRunning: a mesh runs in this home.
        LayoutError: a port is taken, or Triton is not installed.
        NotDurable: NATS could lose what it acknowledged.
    """
    with state.hold_lock(layout.home.lock_file):
        require_free_ports(layout)
        for directory in layout.directories():
            directory.mkdir(parents=True, exist_ok=True)
        retention.remove_oldest(layout.home.traces)
        secrets = shared_secrets.load_or_make(layout.home.secrets)
        signing_keys.ensure(layout.signing_key, layout.trusted_keys, layout.home.data)
        specs = processes.mesh(layout, secrets, processes.listen(layout))
        names = [spec.name for spec in specs]
        with contextlib.closing(
            MeshLog(layout.home.logs, names, None if quiet else watched_stream())
        ) as log:
            log.say(f"home {layout.home.path}, ports from {layout.base_port}")
            asyncio.run(_run(layout, specs, log))


async def _run(layout: Layout, specs: Sequence[ProcessSpec], log: MeshLog) -> None:
    await Supervisor(layout, specs, log).run()
