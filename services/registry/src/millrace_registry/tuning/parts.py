"""What searches for settings are made of."""

import threading
from collections.abc import Callable

from millrace_registry.app import RegistryApp
from millrace_registry.control_parts import endpoint_of
from millrace_registry.settings import RegistrySettings
from millrace_registry.tuning.api import TuningServicer
from millrace_registry.tuning.app import TuningApp
from millrace_registry.tuning.service import ServingTuner
from millrace_registry.tuning.store import TuningStore
from millrace_runtime import owner
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.work import Worker


def tuning_of(
    settings: RegistrySettings,
    database: Database,
    app: RegistryApp,
    content: ContentStore,
    ring_controller: Callable[[], None],
    draining: threading.Event,
) -> tuple[TuningServicer, Worker]:
    """Who answers for searches, and who carries them out: one at a time, on this endpoint."""
    store = TuningStore(
        database,
        endpoint=settings.triton_grpc_address,
        owner=owner.this_process(),
        lease_seconds=settings.lease_seconds,
    )
    tuner = ServingTuner(
        endpoint_of(settings), app, store, content, ring_controller=ring_controller
    )
    worker = Worker("serving-tuner", store, tuner.perform, settings.lease_seconds)
    return TuningServicer(TuningApp(store, app, ring_worker=worker.ring), draining), worker
