"""The catalogue: models, versions, deployments, rollouts and lineage, as users see and change them.

State and the fact it causes are written in one transaction. A tenant of ``-`` stands for every
tenant, and a model of ``-`` for every model. What the controller does is in ``control_store.py``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, func, literal, select, tuple_, update

from millrace.registry.v1 import events_pb2
from millrace_registry import endpoint_store, hold_store, recall_rows, rollout_store, tag_store
from millrace_registry.domain import (
    EVERY,
    Deployment,
    HoldRule,
    Model,
    RequestKey,
    Rollout,
    Version,
    VersionState,
    lineage_of,
    utc_now,
)
from millrace_registry.lineage_store import add_lineage
from millrace_registry.memory import Memory
from millrace_registry.recall_store import refusal
from millrace_registry.rows import (
    deployment_of,
    deployment_values,
    model_of,
    rollout_of,
    rollout_values,
    version_of,
    version_values,
)
from millrace_registry.schema import ALIASES, DEPLOYMENTS, MODELS, ROLLOUTS, VERSIONS
from millrace_registry.transitions import (
    RecordFact,
    aliases_of,
    is_overtaken,
    quarantine_version,
    read_model,
    read_version,
    retire_serving,
    reverse_rollout,
    scope,
    write_alias,
)
from millrace_registry.upsert import insert
from millrace_runtime import idempotency, names
from millrace_runtime.database import Database
from millrace_runtime.errors import Aborted, AlreadyExists


class Catalogue:
    """Rows of everything but lineage, traffic and routes."""

    def __init__(
        self,
        database: Database,
        record: RecordFact,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._record = record
        self._now = now

    def model(self, tenant: str, id: str) -> Model | None:
        with self._database.transaction() as connection:
            return read_model(connection, tenant, id)

    def models(self, tenant: str, after_id: str, count: int) -> list[Model]:
        """Models by id, after ``after_id``."""
        query = (
            select(MODELS)
            .where(MODELS.c.tenant == tenant, MODELS.c.id > after_id)
            .where(MODELS.c.is_deleted.is_(False))
            .order_by(MODELS.c.id)
            .limit(count)
        )
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
            return [model_of(row, aliases_of(connection, tenant, row.id)) for row in rows]

    def delete_model(self, tenant: str, id: str) -> bool:
        """Stop serving a model and forget it; its versions stay. False: there is none."""
        found = (MODELS.c.tenant == tenant) & (MODELS.c.id == id) & MODELS.c.is_deleted.is_(False)
        with self._database.transaction() as connection:
            for rollout in rollout_store.lock_unended(connection, tenant, id):
                self._reverse(connection, rollout, "the model was deleted")
            retire_serving(connection, tenant, id, self._now())
            gone = update(MODELS).where(found).values(is_deleted=True, serving_version=0)
            is_gone = connection.execute(gone).rowcount == 1
            connection.execute(
                delete(ALIASES).where(ALIASES.c.tenant == tenant, ALIASES.c.model == id)
            )
        return is_gone

    def set_alias(self, tenant: str, model: str, alias: str, version: int) -> None:
        """Let an alias mean a version; version 0 removes it."""
        with self._database.transaction() as connection:
            write_alias(connection, tenant, model, alias, version)

    def set_tags(
        self,
        tenant: str,
        model: str,
        number: int | None,
        tags: Mapping[str, str],
        removed: Collection[str],
    ) -> Mapping[str, str]:
        with self._database.transaction() as connection:
            return tag_store.change(connection, (tenant, model, number), tags, removed)

    def version(self, tenant: str, model: str, number: int) -> Version | None:
        with self._database.transaction() as connection:
            return read_version(connection, tenant, model, number)

    def version_of_compression(self, tenant: str, compression: str) -> Version | None:
        with self._database.transaction() as connection:
            return _version_of_compression(connection, tenant, compression)

    def versions(
        self, tenant: str, model: str, before: Version | None, count: int
    ) -> list[Version]:
        """The newest ``count`` versions older than ``before`` (None: than anything)."""
        order = tuple(VERSIONS.c[name] for name in ("create_time", "tenant", "model", "number"))
        query = select(VERSIONS).order_by(*(column.desc() for column in order)).limit(count)
        query = query.where(*scope(VERSIONS, tenant, model))
        if before is not None:
            last = (literal(getattr(before, column.name), column.type) for column in order)
            query = query.where(tuple_(*order) < tuple_(*last))
        with self._database.transaction() as connection:
            return [version_of(row) for row in connection.execute(query)]

    def register(
        self, version: Version, base_model: str, damage: str, is_by_hand: bool
    ) -> Version | None:
        """Add an artifact as the next version of its model, with a rollout to it and its
        lineage. Once.

        ``version.number`` is given here. ``damage`` says why it may never be served, if so; it
        is QUARANTINED then, and nothing is rolled out; nor is it where ``version.state_reason``
        says that no engine here runs it. Where a newer checkpoint was first, the rollout is
        SUPERSEDED from the start, unless a person asked for the version (``is_by_hand``). None:
        the model was deleted.
        """
        with self._database.transaction() as connection:
            recall_rows.lock(connection, version.tenant)
            # Locks the model: who registers for it at the same time sees this version, or waits.
            if not self._ensure_model(connection, version, base_model):
                return None
            made = _version_of_compression(connection, version.tenant, version.compression)
            if made is not None:
                return made
            version = replace(version, number=_next_number(connection, version))
            refused = refusal(connection, version)
            damage = damage or refused.damage
            state = VersionState.QUARANTINED if damage else VersionState.REGISTERED
            why = damage or refused.reason or version.state_reason
            version = replace(version, state=state, state_reason=why)
            connection.execute(VERSIONS.insert().values(**version_values(version)))
            self._say_registered(connection, version)
            deployment = self._ensure_deployment(connection, version.tenant, version.model)
            add_lineage(connection, *lineage_of(version, deployment))
            if damage:
                self._say_quarantined(connection, version, refused.recall)
            elif not version.state_reason:
                is_late = not is_by_hand and is_overtaken(connection, version)
                self._add_rollout(connection, version, deployment, is_late)
        return version

    def _ensure_model(self, connection: Connection, version: Version, base_model: str) -> bool:
        values = {
            "tenant": version.tenant,
            "id": version.model,
            "base_model": base_model,
            "serving_version": 0,
            "is_deleted": False,
            "create_time": self._now(),
        }
        connection.execute(insert(connection, MODELS).values(**values).on_conflict_do_nothing())
        query = select(MODELS.c.is_deleted).where(
            MODELS.c.tenant == version.tenant, MODELS.c.id == version.model
        )
        return not connection.execute(query.with_for_update()).scalar_one()

    def _add_rollout(
        self, connection: Connection, version: Version, deployment: Deployment, is_late: bool
    ) -> None:
        rollout = rollout_store.rollout_to(version, deployment, self._now(), is_late)
        connection.execute(ROLLOUTS.insert().values(**rollout_values(rollout)))

    def hold(self, version: Version, rule: HoldRule) -> datetime | None:
        """Keep a version loaded; until when, or None: as many as may be are in use."""
        with self._database.transaction() as connection:
            return hold_store.hold(connection, version, rule, self._now())

    def memories(self) -> Sequence[Memory]:
        """The memory of every endpoint that was heard of lately."""
        with self._database.transaction() as connection:
            return endpoint_store.memories(connection, self._now())

    def version_of_step(self, tenant: str, model: str, step: int) -> int:
        """Number of the newest version made of a checkpoint of that step; 0: there is none."""
        with self._database.transaction() as connection:
            return hold_store.steps_of(connection, tenant, model).get(step, 0)

    def quarantine(self, tenant: str, model: str, number: int, reason: str) -> Version | None:
        """Take a version out of service for good; the newest retired one takes its place."""
        with self._database.transaction() as connection:
            recall_rows.lock(connection, tenant)
            version = read_version(connection, tenant, model, number)
            if version is None or version.state == VersionState.QUARANTINED:
                return version and recall_rows.keep_out(connection, version, reason)
            for rollout in rollout_store.lock_unended(connection, tenant, model):
                if rollout.to_version == number:
                    self._reverse(connection, rollout, f"the version was quarantined: {reason}")
            quarantine_version(connection, version, reason, self._now())
            version = replace(version, state=VersionState.QUARANTINED, state_reason=reason)
            self._say_quarantined(connection, version)
        return version

    def add_deployment(self, deployment: Deployment, request: RequestKey) -> Deployment:
        """
        Raises:
            AlreadyExists: the model has a deployment, or the request id was used otherwise.
        """
        with self._database.transaction() as connection:
            if _insert_deployment(connection, deployment, request):
                return deployment
            made = idempotency.find_made(
                connection, DEPLOYMENTS, deployment.tenant, request.id, request.digest
            )
            if made is None:
                raise AlreadyExists(
                    f"model {deployment.model!r} has a deployment already; update that one",
                    reason="DEPLOYMENT_EXISTS",
                    field="deployment.model",
                )
            query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.id == made)
            return deployment_of(connection.execute(query).one())

    def deployment(self, tenant: str, id: str) -> Deployment | None:
        query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.tenant == tenant, DEPLOYMENTS.c.id == id)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else deployment_of(row)

    def deployments(self, tenant: str, before_id: str, count: int) -> list[Deployment]:
        """The newest ``count`` deployments older than ``before_id`` (empty: than anything)."""
        query = _newest(DEPLOYMENTS, tenant, EVERY, before_id, count)
        with self._database.transaction() as connection:
            return [deployment_of(row) for row in connection.execute(query)]

    def update_deployment(
        self, deployment: Deployment, expected_revision: int | None
    ) -> Deployment:
        """Replace what a user may set.

        Raises:
            Aborted: it is not at ``expected_revision`` any more.
        """
        changed = (
            update(DEPLOYMENTS)
            .where(DEPLOYMENTS.c.tenant == deployment.tenant, DEPLOYMENTS.c.id == deployment.id)
            .values(**{**deployment_values(deployment), "revision": DEPLOYMENTS.c.revision + 1})
        )
        if expected_revision is not None:
            changed = changed.where(DEPLOYMENTS.c.revision == expected_revision)
        with self._database.transaction() as connection:
            if connection.execute(changed).rowcount == 0:
                raise Aborted(
                    "the deployment was changed meanwhile; read it again",
                    reason="ETAG_MISMATCH",
                    field="deployment.etag",
                )
            query = select(DEPLOYMENTS).where(DEPLOYMENTS.c.id == deployment.id)
            return deployment_of(connection.execute(query).one())

    def ensure_deployment(self, tenant: str, model: str) -> Deployment | None:
        """The model's deployment; the default one is made where there is none. None: the model
        was deleted."""
        query = select(MODELS.c.is_deleted).where(MODELS.c.tenant == tenant, MODELS.c.id == model)
        with self._database.transaction() as connection:
            if connection.execute(query).scalar_one_or_none():
                return None
            return self._ensure_deployment(connection, tenant, model)

    def _ensure_deployment(self, connection: Connection, tenant: str, model: str) -> Deployment:
        now = self._now()
        default = Deployment(tenant, names.new_id("deployment"), model, now, now)
        _insert_deployment(connection, default, RequestKey("", ""))
        of_model = (DEPLOYMENTS.c.tenant == tenant) & (DEPLOYMENTS.c.model == model)
        return deployment_of(connection.execute(select(DEPLOYMENTS).where(of_model)).one())

    def create_rollout(
        self, tenant: str, model: str, number: int, request: RequestKey, traceparent: str
    ) -> Rollout:
        """
        Raises:
            NotFound, FailedPrecondition, AlreadyExists: ``rollout_store.create``.
        """
        with self._database.transaction() as connection:
            version = rollout_store.require_version(connection, tenant, model, number)
            deployment = self._ensure_deployment(connection, tenant, model)
            made = rollout_store.rollout_to(version, deployment, self._now(), is_late=False)
            made = replace(made, traceparent=traceparent or version.traceparent)
            return rollout_store.create(connection, made, version, request)

    def rollout(self, tenant: str, id: str) -> Rollout | None:
        query = select(ROLLOUTS).where(ROLLOUTS.c.tenant == tenant, ROLLOUTS.c.id == id)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else rollout_of(row)

    def rollouts(self, tenant: str, model: str, before_id: str, count: int) -> list[Rollout]:
        """The newest ``count`` rollouts older than ``before_id`` (empty: than anything)."""
        query = _newest(ROLLOUTS, tenant, model or EVERY, before_id, count)
        with self._database.transaction() as connection:
            return [rollout_of(row) for row in connection.execute(query)]

    def reverse_rollout(self, tenant: str, id: str, reason: str) -> Rollout | None:
        """Reverse a rollout that has not ended; one that has is returned as it is."""
        how = rollout_store.reversal(reason, self._now(), self._record)
        return self._change_rollout(tenant, id, how)

    def promote_rollout(self, tenant: str, id: str, reason: str) -> Rollout | None:
        """Settle one whose new version answers now; any other rollout is returned as it is."""
        how = rollout_store.promotion(reason, self._now(), self._record)
        return self._change_rollout(tenant, id, how)

    def pause_rollout(self, tenant: str, id: str, paused: bool) -> Rollout | None:
        """Keep a rollout where it is, or let it go on; one that has ended is returned as it is."""
        how = rollout_store.pause(paused, self._now(), self._record)
        return self._change_rollout(tenant, id, how)

    def _change_rollout(self, tenant: str, id: str, how: rollout_store.Change) -> Rollout | None:
        with self._database.transaction() as connection:
            return rollout_store.change(connection, tenant, id, how)

    def _reverse(self, connection: Connection, rollout: Rollout, reason: str) -> None:
        reverse_rollout(connection, rollout, reason, self._now(), self._record)

    def _say_registered(self, connection: Connection, version: Version) -> None:
        fact = events_pb2.VersionRegistered(
            version=version.name,
            model=version.model,
            number=version.number,
            checkpoint=version.checkpoint_name,
        )
        fact.artifact.uri = version.artifact.uri
        fact.artifact.digest = version.artifact.digest
        fact.artifact.size_bytes = version.artifact.size_bytes
        self._record(connection, version.tenant, fact, version.traceparent)

    def _say_quarantined(self, connection: Connection, version: Version, recall: str = "") -> None:
        fact = events_pb2.VersionQuarantined(
            version=version.name, reason=version.state_reason, recall=recall
        )
        self._record(connection, version.tenant, fact, version.traceparent)


def _insert_deployment(connection: Connection, deployment: Deployment, request: RequestKey) -> bool:
    """False: the model has one, or the request id was used."""
    statement = insert(connection, DEPLOYMENTS).values(
        id=deployment.id,
        tenant=deployment.tenant,
        **deployment_values(deployment),
        **idempotency.values(request.id, request.digest),
    )
    added = statement.on_conflict_do_nothing().returning(DEPLOYMENTS.c.id)
    return connection.execute(added).first() is not None


def _version_of_compression(
    connection: Connection, tenant: str, compression: str
) -> Version | None:
    query = select(VERSIONS).where(
        VERSIONS.c.tenant == tenant, VERSIONS.c.compression == compression
    )
    row = connection.execute(query).first()
    return None if row is None else version_of(row)


def _next_number(connection: Connection, version: Version) -> int:
    of_model = scope(VERSIONS, version.tenant, version.model)
    highest = select(func.max(VERSIONS.c.number)).where(*of_model)
    return (connection.execute(highest).scalar_one() or 0) + 1


def _newest(table: Table, tenant: str, model: str, before_id: str, count: int) -> Select[Any]:
    query = select(table).where(*scope(table, tenant, model))
    query = query.order_by(table.c.id.desc()).limit(count)
    return query.where(table.c.id < before_id) if before_id else query
