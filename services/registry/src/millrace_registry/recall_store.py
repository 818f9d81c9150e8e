"""Recalls as users make and see them, and as they stand against what comes later."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, select

from millrace.registry.v1 import events_pb2
from millrace_registry import recall_looks, recall_rows
from millrace_registry.catalogue import Lineage
from millrace_registry.domain import (
    LineageEdge,
    LineageNode,
    RequestKey,
    Version,
    VersionState,
    utc_now,
)
from millrace_registry.hold_store import held_now
from millrace_registry.lineage_store import downstream, ends, nodes_of
from millrace_registry.recall import Action, Cause, Key, Met, Outcome, Recall, Recalled, is_live
from millrace_registry.recall_effects import Effects
from millrace_registry.recall_lift import Release
from millrace_registry.recall_looks import Held, Search
from millrace_registry.schema import NODES, RECALLS
from millrace_registry.transitions import RecordFact, read_version
from millrace_runtime import idempotency, names
from millrace_runtime.database import Database
from millrace_runtime.errors import FailedPrecondition


class Recalls:
    """Rows of recalls. State and the facts that it causes are written in one transaction."""

    def __init__(
        self, database: Database, record: RecordFact, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._database = database
        self._record = record
        self._now = now

    def create(self, recall: Recall, request: RequestKey) -> Recall:
        """Add a recall and do what it says; the same request again changes nothing.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        with self._database.transaction() as connection:
            recall_rows.lock(connection, recall.tenant)
            made = idempotency.find_made(
                connection, RECALLS, recall.tenant, request.id, request.digest
            )
            if made is None:
                key = idempotency.values(request.id, request.digest)
                recall_rows.add(connection, recall, key)
                self._act(connection, recall, affected(connection, recall))
            found = recall_rows.read(connection, recall.tenant, made or recall.id)
            assert found is not None, "it is there now"
            return self._whole(connection, found)

    def get(self, tenant: str, id: str) -> Recall | None:
        """A recall, with all that was made of its causes, as it is now."""
        with self._database.transaction() as connection:
            found = recall_rows.read(connection, tenant, id)
            return None if found is None else self._whole(connection, found)

    def page(self, tenant: str, before_id: str, count: int) -> list[Recall]:
        """The newest ``count`` recalls older than ``before_id`` (empty: than anything)."""
        query = select(RECALLS).where(RECALLS.c.tenant == tenant)
        query = query.order_by(RECALLS.c.id.desc()).limit(count)
        if before_id:
            query = query.where(RECALLS.c.id < before_id)
        with self._database.transaction() as connection:
            found = [recall_rows.recall_of(row) for row in connection.execute(query).all()]
            filled = [recall_rows.with_causes(connection, recall) for recall in found]
            return [self._with_versions(connection, recall) for recall in filled]

    def enforce(self, changed: Iterable[str]) -> bool:
        """Deal with versions that turn out to be made of what is recalled, now that more is known
        of where these things came from; whether there were any."""
        found = False
        for tenant, ours in _by_tenant(changed).items():
            with self._database.transaction() as connection:
                recall_rows.lock(connection, tenant)
                recall = recall_rows.standing_against(connection, tenant, ours)
                if recall is not None:
                    reached = {*ours, *ends(downstream(connection, ours))}
                    versions = _versions(connection, tenant, reached)
                    new = _not_met(connection, recall, versions)
                    self._act(connection, recall, new)
                    found = found or bool(new)
        return found

    def join(self, search: Search, held: Held) -> bool:
        """Remember that a recall has looked, and deal with what its rows were found in; whether
        that is new."""
        with self._database.transaction() as connection:
            recall_rows.lock(connection, search.tenant)
            recall = recall_rows.read(connection, search.tenant, search.recall)
            if recall is None or not recall.stands:
                return False
            recall_looks.add(connection, recall, search.names)
            if set(held.unindexed) - set(recall.unindexed):
                recall_rows.add_unindexed(connection, recall, held.unindexed)
            joined = [replace(cause, join_time=self._now()) for cause in held.causes]
            new = [cause for cause in joined if recall_rows.add_cause(connection, recall, cause)]
            for cause in new:
                self._say_extended(connection, recall, cause)
            grown = replace(recall, causes=(*recall.causes, *new))
            versions = _not_met(connection, recall, affected(connection, grown)) if new else []
            self._act(connection, recall, versions)
            return bool(new)

    def lift(self, tenant: str, id: str, reason: str) -> Recall | None:
        """End a standing recall; one that was lifted before stays as it is. None: there is none.

        Raises:
            FailedPrecondition: RECALL_REPORTED, it never stood.
        """
        with self._database.transaction() as connection:
            recall_rows.lock(connection, tenant)
            found = recall_rows.read(connection, tenant, id)
            if found is None:
                return None
            if found.action == Action.REPORT:
                raise FailedPrecondition(
                    f"{id} reported, and keeps nothing out of service", reason="RECALL_REPORTED"
                )
            if found.lift_time is None:
                found = replace(found, lift_time=self._now(), lift_reason=reason)
                recall_rows.set_lifted(connection, found, self._now(), reason)
                recall_looks.forget(connection, found)
                release = Release(connection, found, self._record, self._now())
                release.of(recall_rows.met_by(connection, found))
            return self._whole(connection, found)

    def _say_extended(self, connection: Connection, recall: Recall, cause: Cause) -> None:
        fact = events_pb2.RecallExtended(
            recall=recall.name,
            cause=cause.name,
            digest=cause.digest,
            held_out=cause.is_heldout,
            row_count=cause.row_count,
        )
        self._record(connection, recall.tenant, fact, recall.traceparent)

    def _act(self, connection: Connection, recall: Recall, versions: Sequence[Version]) -> None:
        met = Effects(connection, recall, self._record, self._now()).on(versions)
        recall_rows.add_met(connection, recall, met)

    def _whole(self, connection: Connection, recall: Recall) -> Recall:
        reached, edges = made_of(connection, recall)
        nodes = tuple(nodes_of(connection, reached))
        ordered = tuple(sorted(edges, key=lambda edge: (edge.cause, edge.effect)))
        return self._with_versions(connection, replace(recall, nodes=nodes, edges=ordered))

    def _with_versions(self, connection: Connection, recall: Recall) -> Recall:
        held = set(held_now(connection, self._now()))
        met = recall_rows.met_by(connection, recall)
        return replace(
            recall,
            versions=tuple(_recalled(connection, recall.tenant, one, held) for one in met),
        )


class WatchedLineage:
    """Lineage in which standing recalls look at all that is new.

    Facts come in any order: a version may be registered before it is known what it was made of.
    ``ring`` says that versions were dealt with; ``ring_watch``, that there is a file or a dataset
    that may hold recalled rows (``recall_watch``).
    """

    def __init__(
        self,
        lineage: Lineage,
        recalls: Recalls,
        ring: Callable[[], None],
        ring_watch: Callable[[], None] = lambda: None,
    ) -> None:
        self._lineage = lineage
        self._recalls = recalls
        self._ring = ring
        self._ring_watch = ring_watch

    def add(
        self,
        nodes: Sequence[LineageNode],
        edges: Sequence[LineageEdge],
        times: dict[str, datetime] | None = None,
    ) -> None:
        self._lineage.add(nodes, edges, times)
        if self._recalls.enforce({node.name for node in nodes} | ends(edges)):
            self._ring()
        if any(node.kind in recall_rows.CAUSE_KINDS for node in nodes):
            self._ring_watch()

    def find(self, tenant: str, reference: str) -> LineageNode | None:
        return self._lineage.find(tenant, reference)

    def around(self, name: str) -> tuple[list[LineageNode], list[LineageEdge]]:
        return self._lineage.around(name)


def affected(connection: Connection, recall: Recall) -> list[Version]:
    """The versions that learnt from a recall's causes."""
    reached, _ = made_of(connection, recall)
    return _versions(connection, recall.tenant, reached)


def made_of(connection: Connection, recall: Recall) -> tuple[set[str], set[LineageEdge]]:
    """Names of all that was made of a recall's causes, themselves included, and how."""
    learnt = [cause for cause in recall.causes if not cause.is_heldout]
    digests = sorted({cause.digest for cause in learnt if cause.digest})
    same = select(NODES.c.name).where(
        NODES.c.digest.in_(digests),
        NODES.c.kind.in_(recall_rows.CAUSE_KINDS),
        NODES.c.name.startswith(f"tenants/{recall.tenant}/", autoescape=True),
    )
    starts = {*(cause.name for cause in learnt), *connection.execute(same).scalars()}
    edges = downstream(connection, starts)
    return starts | ends(edges), edges


def _versions(connection: Connection, tenant: str, reached: set[str]) -> list[Version]:
    """Those of ``reached`` that are registered versions, by model and number."""
    found = []
    for node in nodes_of(connection, reached):
        if node.kind == "version":
            parts = names.parse("tenants/{tenant}/models/{model}/versions/{number}", node.name)
            found.append(read_version(connection, tenant, parts["model"], int(parts["number"])))
    return sorted((v for v in found if v is not None), key=lambda v: (v.model, v.number))


def _not_met(connection: Connection, recall: Recall, versions: Iterable[Version]) -> list[Version]:
    met = {(m.model, m.number) for m in recall_rows.met_by(connection, recall)}
    return [v for v in versions if (v.model, v.number) not in met]


def _recalled(connection: Connection, tenant: str, met: Met, held: set[Key]) -> Recalled:
    version = read_version(connection, tenant, met.model, met.number)
    assert version is not None, "versions are never removed"
    is_held = (tenant, met.model, met.number) in held
    return Recalled(met, version.state, is_live(version.state, is_held))


def _by_tenant(changed: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(set(changed)):
        found.setdefault(names.tenant_of(name), []).append(name)
    return found


@dataclass(frozen=True)
class Refusal:
    """How a version is registered that a recall stands against; all empty: none does.

    ``damage``: why it is quarantined; ``reason``: why it is registered and never rolled out.
    """

    recall: str = ""
    damage: str = ""
    reason: str = ""


def refusal(connection: Connection, version: Version) -> Refusal:
    """What to do about a version that is about to be registered, under ``recall_rows.lock``."""
    recall = recall_rows.standing_against(connection, version.tenant, [version.checkpoint_name])
    if recall is None:
        return Refusal()
    is_for_good = recall.action == Action.QUARANTINE
    outcome = Outcome.QUARANTINED if is_for_good else Outcome.ROLLED_BACK
    state, reason = VersionState.REGISTERED, version.state_reason
    met = Met(version.model, version.number, state, False, outcome, reason_before=reason)
    recall_rows.add_met(connection, recall, [met])
    if is_for_good:
        return Refusal(recall.name, damage=recall.why)
    return Refusal(recall.name, reason=recall.why)
