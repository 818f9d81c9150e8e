"""The trainer: pre-training runs, and the checkpoints that they leave on their way."""

from functools import partial
from pathlib import Path

from millrace.data.v1.service_pb2_grpc import DataServiceStub
from millrace_runtime import hosting, owner, work
from millrace_runtime.bus import Consumer
from millrace_runtime.channel import open_channel
from millrace_runtime.database import migrate, open_database
from millrace_runtime.hosting import Service
from millrace_runtime.outbox import Outbox
from millrace_runtime.relay import Relay
from millrace_runtime.settings import from_command_line
from millrace_runtime.signed_content import content_store_of
from millrace_runtime.work import Worker
from millrace_trainer.api import SERVICE_NAME, TrainerServicer
from millrace_trainer.app import TrainerApp
from millrace_trainer.events import FactRecorder, subscriptions
from millrace_trainer.schema import OUTBOX
from millrace_trainer.settings import TrainerSettings
from millrace_trainer.store import RunStore
from millrace_trainer.training import Trainer
from millrace_trainer.upstream import DataServiceDatasets

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: TrainerSettings) -> Service:
    """The service, made of its parts; nothing runs yet."""
    database = open_database(settings.database_url)
    migrate(database, MIGRATIONS)
    outbox = Outbox(OUTBOX)
    relay = Relay(database, outbox)
    token = settings.internal_token.get_secret_value() if settings.internal_token else None
    runs = RunStore(
        database,
        FactRecorder(outbox),
        owner=owner.this_process(),
        lease_seconds=settings.lease_seconds,
    )
    trainer = Trainer(
        runs,
        content_store_of(settings),
        scratch=settings.scratch_directory / "runs",
        threads=settings.threads,
        mlflow_tracking_uri=settings.mlflow_tracking_uri,
        ring=relay.ring,
        run_job=partial(work.run_job, niceness=settings.niceness),
    )
    workers = [
        Worker(f"trainer-{number}", runs, trainer.perform, settings.lease_seconds)
        for number in range(settings.concurrency)
    ]
    datasets = DataServiceDatasets(DataServiceStub(open_channel(settings.data_address, token)))
    app = TrainerApp(runs, datasets, ring=relay.ring, ring_workers=work.ring_all(workers))
    return Service(
        name="trainer",
        settings=settings,
        database=database,
        relay=relay,
        consumer=Consumer("trainer", subscriptions(app)),
        rpc_services=(SERVICE_NAME,),
        register=TrainerServicer(app).register,
        workers=workers,
        reconcile=app.reconcile,
    )


if __name__ == "__main__":
    chosen = from_command_line(TrainerSettings, "python -m millrace_trainer", __doc__ or "")
    hosting.start_logging(chosen.log_level)
    hosting.serve(build(chosen))
