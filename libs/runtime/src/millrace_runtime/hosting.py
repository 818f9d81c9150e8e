"""Runs a service: its gRPC server, probes, relay, consumer, workers and reconciler.

``__main__.py`` builds the parts and calls ``serve``, which returns after SIGTERM or SIGINT:
the service says NOT_SERVING, lets calls in flight end within the drain time, gives its work
back, publishes what is left in its outbox if it can, and stops.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.instrumentation.grpc import server_interceptor
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from millrace_runtime import bus, garbage, telemetry
from millrace_runtime.bus import Consumer
from millrace_runtime.database import Database
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_runtime.relay import Relay
from millrace_runtime.settings import ServiceSettings

LOG = logging.getLogger(__name__)

_RPC_THREADS = 32

NATS_CONNECTED = Gauge("millrace_nats_connected", "1 while connected to NATS.")


class Background(Protocol):
    """Something that runs in a thread of its own while the service does (``work.Worker``)."""

    @property
    def name(self) -> str: ...

    def run(self) -> None:
        """Runs until ``drain`` is called."""
        ...

    def drain(self) -> None: ...


@dataclass
class Service:
    """All that a service is made of.

    Attributes:
        name: the stage's name.
        rpc_services: full protobuf names of the services that ``register`` adds.
        register: adds the servicers to the gRPC server.
        reconcile: derives outstanding work from state alone; called every
            ``settings.reconcile_seconds``, and once at start.
        on_stop: called when the service stops, last.
    """

    name: str
    settings: ServiceSettings
    database: Database
    relay: Relay
    consumer: Consumer
    rpc_services: Sequence[str]
    register: Callable[[grpc.Server], None]
    workers: Sequence[Background] = ()
    reconcile: Callable[[], None] | None = None
    on_stop: Sequence[Callable[[], None]] = field(default_factory=tuple)


def start_logging(level: str) -> None:
    """One line an event on standard error, with its level; times are UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    for noisy in ("uvicorn.access", "uvicorn.error", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def serve(service: Service) -> None:
    """Run until told to stop."""
    stop_tracing = telemetry.start_tracing(f"millrace-{service.name}")
    garbage.spare_what_is_there()
    try:
        asyncio.run(_serve(service))
    finally:
        for action in service.on_stop:
            action()
        service.database.close()
        stop_tracing()


async def _serve(service: Service) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_default_executor(ThreadPoolExecutor(_RPC_THREADS, "to-thread"))
    server, state = _start_rpc(service)
    probes = _probe_server(service, stop)
    tasks = [
        asyncio.create_task(probes.serve(inherited(service.settings))),
        asyncio.create_task(_run_bus(service)),
    ]
    if service.reconcile is not None:
        tasks.append(asyncio.create_task(_reconcile(service, service.reconcile)))
    threads = [threading.Thread(target=worker.run, name=worker.name) for worker in service.workers]
    for thread in threads:
        thread.start()
    LOG.info("%s answers gRPC at %s", service.name, service.settings.grpc_address)
    await stop.wait()
    LOG.info("%s drains", service.name)
    state.enter_graceful_shutdown()
    for worker in service.workers:
        worker.drain()
    ended = server.stop(service.settings.drain_seconds)
    await asyncio.to_thread(ended.wait)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    probes.should_exit = True
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def inherited(settings: ServiceSettings) -> list[socket.socket] | None:
    """The listening socket that was handed down, if one was; else uvicorn makes its own."""
    listener = settings.http_listener
    return None if listener is None else [socket.socket(fileno=listener)]


def _start_rpc(service: Service) -> tuple[grpc.Server, health.HealthServicer]:
    token = service.settings.internal_token
    server = grpc.server(
        ThreadPoolExecutor(_RPC_THREADS, "rpc"),
        interceptors=[
            server_interceptor(),
            ServiceInterceptor(token.get_secret_value() if token else None),
        ],
        options=[("grpc.so_reuseport", int(service.settings.share_ports))],
    )
    service.register(server)
    state = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    names = (*service.rpc_services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    server.add_insecure_port(service.settings.grpc_address)
    server.start()
    for name in ("", *service.rpc_services):
        state.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, state


async def _run_bus(service: Service) -> None:
    client = await bus.connect_patiently(service.settings.nats_url, service.name)
    NATS_CONNECTED.set_function(lambda: 1.0 if client.is_connected else 0.0)
    try:
        await asyncio.gather(service.relay.run(client), service.consumer.run(client))
    finally:
        await client.close()


async def _reconcile(service: Service, reconcile: Callable[[], None]) -> None:
    while True:
        try:
            await asyncio.to_thread(reconcile)
        except Exception:  # the next sweep may succeed; the service must live to make it
            LOG.exception("%s: the reconciler's sweep failed", service.name)
        await asyncio.sleep(service.settings.reconcile_seconds)


def _probe_server(service: Service, stop: asyncio.Event) -> uvicorn.Server:
    """Kubernetes probes and metrics. Not ready while draining, or without a database.

    Two processes may answer at one address while one follows the other: the process id tells
    them apart. Being cut off from NATS is no reason to be not ready: the database is the truth, and
    questions can be answered. The metric ``millrace_nats_connected`` says it instead.
    """

    async def livez(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        if stop.is_set():
            return JSONResponse({"status": "draining"}, status_code=503)
        try:
            alive = await asyncio.to_thread(service.database.is_alive)
        except Exception as error:  # whatever the driver raises, the answer is the same
            LOG.warning("the database does not answer: %s", error)
            alive = False
        if not alive:
            return JSONResponse({"status": "database does not answer"}, status_code=503)
        return JSONResponse({"status": "ok", "pid": os.getpid()})

    async def metrics(_request: Request) -> Response:
        await asyncio.to_thread(service.relay.measure)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    routes = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    host, port = service.settings.http_address.rsplit(":", 1)
    config = uvicorn.Config(
        Starlette(routes=routes), host=host, port=int(port), log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    # uvicorn must not take the signals: stopping is the service's decision.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server
