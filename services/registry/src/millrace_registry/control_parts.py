"""What the control of one Triton endpoint is made of."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from millrace_registry import machine_memory
from millrace_registry.control import Controller
from millrace_registry.control_store import ControlStore
from millrace_registry.events import FactRecorder
from millrace_registry.provenance import Provenance
from millrace_registry.repository import ModelRepository
from millrace_registry.room import Room
from millrace_registry.settings import RegistrySettings
from millrace_registry.triton import Triton
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.service import Endpoint
from millrace_runtime import names, owner
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.settings import secret

_QUESTIONS_AT_ONCE = 16  # to all versions: more would be in the way of clients' requests


def endpoint_of(settings: RegistrySettings) -> Endpoint:
    """The same endpoint, as other settings are tried on it."""
    return Endpoint(
        settings.triton_grpc_address,
        secret(settings.triton_control_key),
        settings.triton_model_repository,
        EngineSettings(threads=settings.engine_threads),
    )


def control_of(
    settings: RegistrySettings,
    database: Database,
    record: FactRecorder,
    content: ContentStore,
    provenance: Provenance,
    ring: Callable[[], None],
) -> tuple[ControlStore, Controller]:
    """The endpoint's records, and what brings the endpoint to what they say.

    Args:
        ring: wakes whoever publishes facts.
    """
    endpoint = settings.triton_grpc_address
    control = ControlStore(
        database,
        record,
        endpoint=endpoint,
        owner=owner.this_process(),
        lease_seconds=settings.lease_seconds,
    )
    engine = EngineSettings(threads=settings.engine_threads)
    controller = Controller(
        control,
        Triton(endpoint, secret(settings.triton_control_key)),
        ModelRepository(settings.triton_model_repository, engine),
        content,
        life=names.new_id("controller"),
        drain=timedelta(seconds=settings.drain_seconds_of_versions),
        ring=ring,
        scoring=ThreadPoolExecutor(_QUESTIONS_AT_ONCE, thread_name_prefix="golden"),
        provenance=provenance,
        room=_room_of(settings, engine),
    )
    return control, controller


def _room_of(settings: RegistrySettings, engine: EngineSettings) -> Room:
    budget = settings.memory_budget_bytes or machine_memory.default_budget_bytes()
    repository = settings.triton_model_repository
    return Room(budget, engine, observe=lambda: machine_memory.engine_bytes(repository))
