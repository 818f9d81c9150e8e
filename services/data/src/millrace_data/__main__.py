"""The data service: uploaded files, and the datasets that are built from them."""

from pathlib import Path

from millrace_data.app import DatasetApp, FileApp
from millrace_data.dataset_build import DatasetBuilder
from millrace_data.events import SUBSCRIPTIONS, FactRecorder
from millrace_data.file_bytes import FileBytes
from millrace_data.part_bytes import PartBytes
from millrace_data.prompt_store import PromptStore
from millrace_data.prompts import PromptApp
from millrace_data.row_search import rows_of
from millrace_data.schema import OUTBOX
from millrace_data.servicers import SERVICE_NAMES, Servicers
from millrace_data.settings import DataSettings
from millrace_data.store import DatasetStore, FileStore
from millrace_data.upload_store import UploadStore
from millrace_data.uploads import UploadApp
from millrace_runtime import hosting, owner
from millrace_runtime.bus import Consumer
from millrace_runtime.database import migrate, open_database
from millrace_runtime.outbox import Outbox
from millrace_runtime.relay import Relay
from millrace_runtime.settings import from_command_line
from millrace_runtime.signed_content import content_store_of
from millrace_runtime.work import Worker

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: DataSettings) -> hosting.Service:
    """The service, made of its parts; nothing runs yet."""
    database = open_database(settings.database_url)
    migrate(database, MIGRATIONS)
    outbox = Outbox(OUTBOX)
    relay, record = Relay(database, outbox), FactRecorder(outbox)
    content = content_store_of(settings)
    limit = settings.maximum_file_bytes
    stored = FileBytes(content, limit)
    files = FileStore(database, record)
    lease = settings.lease_seconds
    datasets = DatasetStore(database, record, owner=owner.this_process(), lease_seconds=lease)
    folder = settings.scratch_directory / "datasets"
    builder = DatasetBuilder(
        datasets, files, stored, content, scratch=folder, threads=settings.threads, ring=relay.ring
    )
    workers = [
        Worker(f"builder-{number}", datasets, builder.perform, lease)
        for number in range(settings.concurrency)
    ]
    rows, search = rows_of(database, content, stored)
    file_app = FileApp(files, stored, rows=rows, ring=relay.ring)
    uploads = UploadStore(database, files)
    upload_app = UploadApp(uploads, PartBytes(content), file_app, limit, ring=relay.ring)
    rings = [worker.ring for worker in workers]
    dataset_app = DatasetApp(datasets, files, ring=relay.ring, ring_builders=rings)
    prompt_app = PromptApp(PromptStore(database))

    def reconcile() -> None:
        upload_app.reconcile()
        file_app.reconcile()
        builder.reconcile()

    return hosting.Service(
        name="data",
        settings=settings,
        database=database,
        relay=relay,
        consumer=Consumer("data", SUBSCRIPTIONS),
        rpc_services=SERVICE_NAMES,
        register=Servicers(file_app, dataset_app, upload_app, prompt_app, search).register,
        workers=workers,
        reconcile=reconcile,
    )


if __name__ == "__main__":
    chosen = from_command_line(DataSettings, "python -m millrace_data", __doc__ or "")
    hosting.start_logging(chosen.log_level)
    hosting.serve(build(chosen))
