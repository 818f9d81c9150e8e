"""The gateway: Millrace's public API.

Answers OpenAI-shaped REST and server-sent events, and gRPC; authenticates, admits, routes to
Triton and streams. It owns API keys, batches and webhooks; everything else is asked of the
services.
"""

import asyncio
from pathlib import Path

import uvloop

from millrace_gateway.app import KeyRing, Keys
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.permissions import Permissions, PermissionTable
from millrace_gateway.replicas import Replicas
from millrace_gateway.serving import serve, stop_on_signals
from millrace_gateway.settings import GatewaySettings
from millrace_gateway.store import OUTBOX, KeyTable
from millrace_gateway.webhooks.service import WebhookService
from millrace_runtime import garbage, hosting, owner, telemetry
from millrace_runtime.database import Database, migrate, open_database
from millrace_runtime.outbox import Outbox
from millrace_runtime.relay import Relay
from millrace_runtime.settings import from_command_line

MIGRATIONS = Path(__file__).parent / "migrations"


def main() -> None:
    settings = from_command_line(GatewaySettings, "python -m millrace_gateway", __doc__ or "")
    hosting.start_logging(settings.log_level)
    database = open_database(settings.database_url)
    migrate(database, MIGRATIONS)
    garbage.spare_what_is_there()
    stop_tracing = telemetry.start_tracing("millrace-gateway")
    try:
        uvloop.run(_run(settings, database))
    finally:
        database.close()
        stop_tracing()


async def _run(settings: GatewaySettings, database: Database) -> None:
    outbox = Outbox(OUTBOX)
    relay = Relay(database, outbox)
    table = KeyTable(database, outbox)
    keys = Keys(table, relay.ring)
    batches = BatchStore(
        database, outbox, owner=owner.this_process(), lease_seconds=settings.lease_seconds
    )
    await asyncio.to_thread(
        keys.ensure_operator, settings.operator_tenant, settings.operator_key_path
    )
    stop = asyncio.Event()
    stop_on_signals(stop)
    key_ring = KeyRing(table.find_live)
    replicas = Replicas(database, owner.this_process())
    webhooks = await asyncio.to_thread(WebhookService, settings, database)
    permissions = Permissions(PermissionTable(database))
    alive = database.is_alive
    await serve(
        settings, keys, key_ring, relay, batches, webhooks, permissions, replicas, alive, stop
    )


if __name__ == "__main__":
    main()
