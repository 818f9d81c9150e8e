"""``python -m tests.chaos.replica_service STAGE SEED``: a real service, but its jobs are quick.

Everything is as ``python -m millrace_STAGE`` builds it, from the environment, except that the
workers' jobs sleep in place of training.
"""

import importlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millrace_runtime import hosting
from millrace_runtime.channel import open_channel
from millrace_runtime.database import open_database
from millrace_runtime.hosting import Background
from millrace_runtime.work import Worker
from millrace_tuner.neighbours import DataFiles
from millrace_tuner.store import JobStore
from millrace_tuner.validation import Unvalidated
from tests.chaos.fencing_stages import TABLES, QuickJob, Stages

_PAUSE_SECONDS = 0.25


def quick_workers(stage: str, settings: Any, seed: int) -> Sequence[Background]:
    """In place of the service's own: one worker, with a real store and perform."""
    database = open_database(settings.database_url)
    job = QuickJob(seed, _PAUSE_SECONDS, has_mistakes=False)
    results = DataFiles(open_channel(settings.data_address, None)) if stage == "tuner" else None
    stages = Stages(Path(settings.data_root).parent, settings.lease_seconds, job, results)
    part = stages.part(stage, database, f"{socket.gethostname()}:{os.getpid()}")
    quick = Worker(f"{stage}-quick", part.source, part.perform, settings.lease_seconds)
    if not isinstance(part.source, JobStore):
        return [quick]
    validate = stages.validation(part.source).perform
    source = Unvalidated(part.source)
    return [Worker("tuner-validation", source, validate, settings.lease_seconds), quick]


def main() -> None:
    stage, seed = sys.argv[1], int(sys.argv[2])
    settings_module = importlib.import_module(f"millrace_{stage}.settings")
    settings = getattr(settings_module, f"{stage.capitalize()}Settings")()
    service = importlib.import_module(f"millrace_{stage}.__main__").build(settings)
    if stage in TABLES:
        service.workers = quick_workers(stage, settings, seed)
    hosting.start_logging("INFO")
    hosting.serve(service)


if __name__ == "__main__":
    main()
