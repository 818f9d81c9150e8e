"""The registry: models, versions, deployments and rollouts; it alone controls Triton."""

from datetime import timedelta
from pathlib import Path

from millrace_registry.api import SERVICE_NAME, RegistryServicer
from millrace_registry.app import RegistryApp
from millrace_registry.control_loop import ControlLoop
from millrace_registry.control_parts import control_of
from millrace_registry.domain import HoldRule
from millrace_registry.events import FactRecorder, subscriptions
from millrace_registry.provenance import provenance_of
from millrace_registry.recall_api import RECALL_SERVICE_NAME, RecallServicer
from millrace_registry.recall_parts import recalls_of
from millrace_registry.schema import OUTBOX
from millrace_registry.settings import RegistrySettings
from millrace_registry.store import Catalogue
from millrace_registry.tuning.api import TUNING_SERVICE_NAME
from millrace_registry.tuning.parts import tuning_of
from millrace_registry.upstream import ArtifactReconciler
from millrace_runtime import hosting
from millrace_runtime.bus import Consumer
from millrace_runtime.content import ContentStore
from millrace_runtime.database import migrate, open_database
from millrace_runtime.hosting import Service
from millrace_runtime.outbox import Outbox
from millrace_runtime.relay import Relay
from millrace_runtime.settings import from_command_line, secret

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: RegistrySettings) -> Service:
    """The service, made of its parts; nothing runs yet."""
    database = open_database(settings.database_url)
    migrate(database, MIGRATIONS)
    outbox = Outbox(OUTBOX)
    relay, record = Relay(database, outbox), FactRecorder(outbox)
    token = secret(settings.internal_token)
    content = ContentStore(settings.data_root, settings.scratch_directory / "cache")
    provenance = provenance_of(settings, content)
    control, controller = control_of(settings, database, record, content, provenance, relay.ring)
    loop = ControlLoop(controller, control, settings.control_seconds)
    catalogue = Catalogue(database, record)
    recalls, lineage, watch = recalls_of(settings, database, record, relay.ring, loop.ring)
    app = RegistryApp(
        catalogue,
        lineage,
        content,
        ring=relay.ring,
        ring_controller=loop.ring,
        engines=settings.engines,
        provenance=provenance,
        hold_rule=HoldRule(settings.held_versions, timedelta(seconds=settings.hold_seconds)),
    )
    tunings, tuner = tuning_of(settings, database, app, content, loop.ring, loop.draining)
    servicer = RegistryServicer(app, control, loop.draining, tunings)
    return Service(
        name="registry",
        settings=settings,
        database=database,
        relay=relay,
        consumer=Consumer("registry", subscriptions(app)),
        rpc_services=(SERVICE_NAME, RECALL_SERVICE_NAME, TUNING_SERVICE_NAME),
        register=RecallServicer(recalls, servicer, tunings).register,
        workers=[loop, tuner, watch],
        reconcile=ArtifactReconciler.at(settings.compressor_address, token, catalogue, app),
    )


if __name__ == "__main__":
    chosen = from_command_line(RegistrySettings, "python -m millrace_registry", __doc__ or "")
    hosting.start_logging(chosen.log_level)
    hosting.serve(build(chosen))
