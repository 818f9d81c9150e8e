"""The compressor: finished checkpoints become artifacts, measured and judged."""

from pathlib import Path

from millrace_compressor.api import SERVICE_NAME, CompressorServicer
from millrace_compressor.app import CompressorApp
from millrace_compressor.compression_run import JOB_MODULE, CompressionRunner
from millrace_compressor.events import FactRecorder, subscriptions
from millrace_compressor.schema import OUTBOX
from millrace_compressor.settings import CompressorSettings
from millrace_compressor.store import CompressionStore
from millrace_compressor.upstream import neighbours
from millrace_runtime import hosting, owner, standby
from millrace_runtime.bus import Consumer
from millrace_runtime.database import migrate, open_database
from millrace_runtime.hosting import Service
from millrace_runtime.outbox import Outbox
from millrace_runtime.relay import Relay
from millrace_runtime.settings import from_command_line, secret
from millrace_runtime.signed_content import content_store_of
from millrace_runtime.work import Worker, ring_all

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: CompressorSettings) -> Service:
    """The service, made of its parts; nothing runs yet."""
    database = open_database(settings.database_url)
    migrate(database, MIGRATIONS)
    outbox = Outbox(OUTBOX)
    relay = Relay(database, outbox)
    lease_seconds = settings.lease_seconds
    store = CompressionStore(
        database, FactRecorder(outbox), owner=owner.this_process(), lease_seconds=lease_seconds
    )
    registry, checkpoints, recoveries = neighbours(settings, secret(settings.internal_token))
    ahead = standby.Standby(JOB_MODULE)
    runner = CompressionRunner(
        store,
        content_store_of(settings),
        scratch=settings.scratch_directory / "compressions",
        threads=settings.threads,
        evaluation_tokens=settings.evaluation_tokens,
        ring=relay.ring,
        llm_compressor_python=settings.llm_compressor_python,
        recoveries=recoveries,
        recovery_tokens=settings.recovery_tokens,
        run_job=ahead.run_job,
    )
    workers = [
        Worker(f"worker-{number}", store, runner.perform, lease_seconds)
        for number in range(settings.concurrency)
    ]
    app = CompressorApp(
        store,
        registry,
        checkpoints,
        ring_workers=ring_all(workers),
        recoveries=recoveries,
        expect_work=ahead.expect,
    )
    return Service(
        name="compressor",
        settings=settings,
        database=database,
        relay=relay,
        consumer=Consumer("compressor", subscriptions(app)),
        rpc_services=(SERVICE_NAME,),
        register=CompressorServicer(app).register,
        workers=[*workers, ahead],
        reconcile=app.reconcile,
    )


if __name__ == "__main__":
    chosen = from_command_line(CompressorSettings, "python -m millrace_compressor", __doc__ or "")
    hosting.start_logging(chosen.log_level)
    hosting.serve(build(chosen))
