"""Recalls, made of their parts."""

from collections.abc import Callable

from millrace_registry.lineage_store import Lineage
from millrace_registry.recall_app import RecallApp
from millrace_registry.recall_looks import RecallLooks
from millrace_registry.recall_store import Recalls, WatchedLineage
from millrace_registry.recall_watch import RecallWatch, RowsOfData
from millrace_registry.settings import RegistrySettings
from millrace_registry.transitions import RecordFact
from millrace_runtime.database import Database
from millrace_runtime.settings import secret


def recalls_of(
    settings: RegistrySettings,
    database: Database,
    record: RecordFact,
    ring: Callable[[], None],
    ring_controller: Callable[[], None],
) -> tuple[RecallApp, WatchedLineage, RecallWatch]:
    """What users ask for, what learns from facts, and what looks for recalled rows."""
    recalls = Recalls(database, record)
    rows = RowsOfData.at(settings.data_address, secret(settings.internal_token))
    period = settings.reconcile_seconds
    watch = RecallWatch(recalls, RecallLooks(database), rows, period, ring=ring)
    lineage = WatchedLineage(Lineage(database), recalls, ring, watch.ring)
    app = RecallApp(recalls, ring=ring, ring_controller=ring_controller, ring_watch=watch.ring)
    return app, lineage, watch
