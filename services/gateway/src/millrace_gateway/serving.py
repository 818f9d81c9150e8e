"""Runs the gateway: REST and gRPC servers, relay, and the watch on the registry's routes.

``hosting.py`` of the runtime does this for the services with synchronous cores; the gateway is
asynchronous throughout. It stops as they do: it says it is not ready, ends event streams, lets
calls in flight end within the drain time, and stops.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import grpc.aio
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from prometheus_client import Gauge
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_gateway import convert, edge, grpc_proxy, upstream
from millrace_gateway.answers import AnswerCounts
from millrace_gateway.app import KeyRing, Keys
from millrace_gateway.batches.service import BatchService
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.entrance import Entrance
from millrace_gateway.generation import Generator
from millrace_gateway.health import Health
from millrace_gateway.history import History
from millrace_gateway.http import create_app, create_handlers, own_version
from millrace_gateway.inference import SERVICE, Inference
from millrace_gateway.inference_engine import TritonInference
from millrace_gateway.inference_grpc import InferenceServicer
from millrace_gateway.letters import Letters
from millrace_gateway.limits import Limiter
from millrace_gateway.permissions import Permissions
from millrace_gateway.placement import Placement
from millrace_gateway.replicas import Replicas
from millrace_gateway.rest.caller import Gateway
from millrace_gateway.rest.prompt_versions import PromptVersions
from millrace_gateway.rest_server import RestServer
from millrace_gateway.route import RouteTable
from millrace_gateway.settings import GatewaySettings
from millrace_gateway.tokenizer import Tokenizers
from millrace_gateway.tracking import Tracking
from millrace_gateway.triton_engine import TritonEngine
from millrace_gateway.webhooks.service import WebhookService
from millrace_gateway.wishes import Wishes
from millrace_runtime import bus
from millrace_runtime.content import ContentStore
from millrace_runtime.errors import MillraceError, Unavailable
from millrace_runtime.hosting import NATS_CONNECTED, inherited
from millrace_runtime.relay import Relay
from millrace_runtime.settings import secret

LOG = logging.getLogger(__name__)

_THREADS = 32
_INFORMED_SECONDS = 3.0
_RECONNECT_SECONDS = 0.5
_REPORT_SECONDS = 0.5
_REPORT_RETRY_SECONDS = 2.0
_WISHES_SECONDS = 0.2
_CANCEL_SECONDS = 5.0
_USUAL_MESSAGE_BYTES = 4 * 2**20  # gRPC's own limit

_ROUTES_REVISION = Gauge("millrace_routes_revision", "Revision of the route table in use.")


async def serve(
    settings: GatewaySettings,
    keys: Keys,
    key_ring: KeyRing,
    relay: Relay,
    batch_store: BatchStore,
    webhooks: WebhookService,
    permissions: Permissions,
    replicas: Replicas,
    is_ready: Callable[[], bool],
    stop: asyncio.Event,
) -> None:
    """Run until ``stop`` is set."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "to-thread"))
    channels = _channels(settings)
    services = upstream.stubs(channels)
    routes = RouteTable()
    engine = TritonEngine(settings.generation_seconds, settings.engine_silence_seconds)
    history = History(settings.event_heartbeat_seconds)
    letters = Letters()
    entrance = _entrance(settings)
    placement = Placement(routes, entrance, Health())
    limiter = Limiter(settings.key_limits())
    generator = Generator(placement, engine, limiter, settings.maximum_mirrored)
    tensors = TritonInference(settings.generation_seconds, settings.engine_silence_seconds)
    content = ContentStore(settings.data_root, settings.scratch_directory / "cache")
    batches = BatchService(settings, batch_store, relay.ring)
    gateway = Gateway(
        upstream=services,
        keys=keys,
        key_ring=key_ring,
        generator=generator,
        inference=Inference(placement, tensors, generator.answers, limiter),
        tokenizers=Tokenizers(content, services.registry.ResolveVersion),
        history=history,
        letters=letters,
        batches=batches.app,
        webhooks=webhooks.app,
        permissions=permissions,
        prompts=PromptVersions(services.prompts.GetPromptVersion),
        tracking=Tracking(settings.mlflow_tracking_uri, settings.data_root),
        content=content,
        is_ready=is_ready,
        measure=webhooks.measured(batches.measured(relay.measure)),
        maximum_body_bytes=settings.maximum_body_bytes,
        maximum_file_bytes=settings.maximum_file_bytes,
    )
    background = [
        asyncio.create_task(_run_bus(settings, relay, webhooks, history, letters)),
        asyncio.create_task(watch_routes(services, routes)),
        asyncio.create_task(report_answers(services, generator.answers)),
        asyncio.create_task(tell_wishes(services, routes.wishes)),
        asyncio.create_task(permissions.run()),
    ]
    informed = _until_informed(routes, history, permissions)
    await asyncio.gather(informed, replicas.look(entrance, limiter))
    handlers = create_handlers(gateway)
    until_drained = (
        batches.run(gateway, handlers),
        webhooks.run(gateway.draining),
        replicas.run(gateway.draining, entrance, limiter),
    )
    background += [asyncio.create_task(work) for work in until_drained]
    rest = RestServer(create_app(gateway, handlers), settings.http_address, settings.drain_seconds)
    rpc, state = await _start_rpc(settings, channels, gateway)
    serving = asyncio.create_task(rest.serve(inherited(settings)))
    LOG.info("REST is answered at %s, gRPC at %s", settings.http_address, settings.grpc_address)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((stopping, serving), return_when=asyncio.FIRST_COMPLETED)
    LOG.info("gateway drains")
    gateway.draining.set()
    rest.should_exit = True
    ending = asyncio.get_running_loop().call_later(
        settings.drain_seconds, engine.break_off, edge.restarting()
    )
    await asyncio.gather(state.enter_graceful_shutdown(), generator.mirror.close())
    await asyncio.gather(rpc.stop(settings.drain_seconds), serving)
    ending.cancel()
    await _end(stopping, *background)
    await _close(engine, tensors, channels)


async def _end(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    """Cancel until all have ended.

    On Python 3.11 ``asyncio.wait_for``, which nats-py uses, forgets a cancellation that comes
    together with an answer (https://github.com/python/cpython/issues/86296).
    """
    alive = set(tasks)
    while alive:
        for task in alive:
            task.cancel()
        _, alive = await asyncio.wait(alive, timeout=_CANCEL_SECONDS)


def _channels(settings: GatewaySettings) -> Mapping[str, grpc.aio.Channel]:
    token = secret(settings.internal_token)
    return {
        stage: upstream.open_channel(getattr(settings, f"{stage}_address"), token)
        for stage in upstream.STAGES
    }


def _entrance(settings: GatewaySettings) -> Entrance:
    return Entrance(
        settings.maximum_generations,
        settings.capacity(),
        settings.queue_seconds,
        settings.patience_seconds(),
    )


async def _close(
    engine: TritonEngine, tensors: TritonInference, channels: Mapping[str, grpc.aio.Channel]
) -> None:
    await engine.close()
    await tensors.close()
    for channel in channels.values():
        await channel.close(None)


def stop_on_signals(stop: asyncio.Event) -> None:
    """Let SIGTERM and SIGINT set ``stop``."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _until_informed(routes: RouteTable, history: History, permissions: Permissions) -> None:
    """Wait for the first routes and for NATS, so that the first request is answered like any.

    Without them much can be answered still: after ``_INFORMED_SECONDS`` the gateway begins.
    """
    await permissions.begin(routes.share)
    with suppress(TimeoutError):
        async with asyncio.timeout(_INFORMED_SECONDS):
            await asyncio.gather(routes.known.wait(), history.attached.wait())


async def watch_routes(services: upstream.Upstream, routes: RouteTable) -> None:
    """Keep the table as the registry has it; while the registry is away it stays as it was."""
    while True:
        try:
            watch = services.registry.WatchRoutes(registry_pb2.WatchRoutesRequest())
            async for response in upstream.stream(watch):
                routes.replace(response.revision, convert.routes(response))
                _ROUTES_REVISION.set(response.revision)
        except MillraceError as error:
            LOG.info("routes cannot be watched now (%s); trying again", error)
        await asyncio.sleep(_RECONNECT_SECONDS)


async def report_answers(services: upstream.Upstream, counts: AnswerCounts) -> None:
    """Tell the registry how versions answer, soon after they did."""
    heard = True
    while True:
        await counts.changed.wait()
        counts.changed.clear()
        try:
            await upstream.call(services.registry.ReportAnswers, convert.answers(counts))
            heard = True
        except MillraceError as error:
            if heard:
                LOG.info("answers cannot be reported now (%s); trying again", error)
            heard = False
            counts.changed.set()
        await asyncio.sleep(_REPORT_SECONDS if heard else _REPORT_RETRY_SECONDS)


async def tell_wishes(services: upstream.Upstream, wishes: Wishes) -> None:
    """Have the registry keep loaded what clients ask for by a checkpoint's step."""
    while True:
        await wishes.changed.wait()
        for wish in wishes.take():
            request = registry_pb2.HoldVersionRequest(name=wish.name)
            try:
                await upstream.call(services.registry.HoldVersion, request)
                wishes.granted(wish)
            except Unavailable:
                wishes.unheard(wish)
            except MillraceError as error:
                wishes.refused(wish, str(error))
        await asyncio.sleep(_WISHES_SECONDS)


async def _run_bus(
    settings: GatewaySettings,
    relay: Relay,
    webhooks: WebhookService,
    history: History,
    letters: Letters,
) -> None:
    client = await bus.connect_patiently(settings.nats_url, "gateway")
    NATS_CONNECTED.set_function(lambda: 1.0 if client.is_connected else 0.0)
    letters.attach(client)
    history.attach(client)
    try:
        await asyncio.gather(relay.run(client), webhooks.consume(client))
    finally:
        await client.close()


async def _start_rpc(
    settings: GatewaySettings, channels: Mapping[str, grpc.aio.Channel], gateway: Gateway
) -> tuple[grpc.aio.Server, health_aio.HealthServicer]:
    largest_bytes = max(settings.maximum_body_bytes, _USUAL_MESSAGE_BYTES)
    server = grpc.aio.server(
        interceptors=[aio_server_interceptor()],
        options=[
            ("grpc.so_reuseport", int(settings.share_ports)),
            ("grpc.max_receive_message_length", largest_bytes),
        ],
    )
    lifecycle = grpc_proxy.Proxy(channels, gateway.upstream, gateway.key_ring, gateway.keys)
    server.add_generic_rpc_handlers([lifecycle])
    add_GRPCInferenceServiceServicer_to_server(
        InferenceServicer(gateway.inference, gateway.key_ring, gateway.draining, own_version()),
        server,
    )
    state = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    names = (*grpc_proxy.service_names(), SERVICE)
    reflection.enable_server_reflection(
        (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    server.add_insecure_port(settings.grpc_address)
    await server.start()
    for name in ("", *names):
        await state.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, state
