"""The tuner: fine-tuning jobs on models that exist, and the checkpoints they make."""

from pathlib import Path

import grpc

from millrace_runtime import hosting, owner
from millrace_runtime.bus import Consumer
from millrace_runtime.channel import open_channel
from millrace_runtime.database import migrate, open_database
from millrace_runtime.hosting import Service
from millrace_runtime.outbox import Outbox
from millrace_runtime.relay import Relay
from millrace_runtime.settings import from_command_line
from millrace_runtime.signed_content import content_store_of
from millrace_tuner import graders_api
from millrace_tuner.api import SERVICE_NAME, TunerServicer
from millrace_tuner.app import TunerApp
from millrace_tuner.events import FactRecorder, Listener
from millrace_tuner.housekeeping import Housekeeping
from millrace_tuner.neighbours import DataFiles, ServedModels
from millrace_tuner.schema import OUTBOX
from millrace_tuner.settings import TunerSettings
from millrace_tuner.store import JobStore
from millrace_tuner.workers import workers_of

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: TunerSettings) -> Service:
    """The service, made of its parts; nothing runs yet."""
    token = settings.internal_token.get_secret_value() if settings.internal_token else None
    database = open_database(settings.database_url)
    migrate(database, MIGRATIONS)
    outbox = Outbox(OUTBOX)
    relay = Relay(database, outbox)
    content = content_store_of(settings)
    this = owner.this_process()
    jobs = JobStore(
        database, FactRecorder(outbox), owner=this, lease_seconds=settings.lease_seconds
    )
    files = DataFiles(open_channel(settings.data_address, token))
    models = ServedModels(
        open_channel(settings.registry_address, token),
        open_channel(settings.compressor_address, token),
    )
    attempt, workers = workers_of(settings, jobs, files, content, relay.ring)
    rings = [worker.ring for worker in workers]
    app = TunerApp(
        jobs,
        files,
        models,
        ring_relay=relay.ring,
        ring_workers=rings,
        is_tracking=settings.mlflow_tracking_uri is not None,
    )
    housekeeping = Housekeeping(app, jobs, attempt.output_directory)
    servicers = (TunerServicer(app), graders_api.servicer(settings))

    def register(server: grpc.Server) -> None:
        for servicer in servicers:
            servicer.register(server)

    return Service(
        name="tuner",
        settings=settings,
        database=database,
        relay=relay,
        consumer=Consumer("tuner", Listener(app).subscriptions()),
        rpc_services=(SERVICE_NAME, graders_api.SERVICE_NAME),
        register=register,
        workers=workers,
        reconcile=housekeeping.reconcile,
    )


if __name__ == "__main__":
    chosen = from_command_line(TunerSettings, "python -m millrace_tuner", __doc__ or "")
    hosting.start_logging(chosen.log_level)
    hosting.serve(build(chosen))
