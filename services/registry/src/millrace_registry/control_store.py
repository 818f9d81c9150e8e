"""What the controller reads and writes. Every write is fenced by the controller's lease.

LeaseLost        another registry controls the endpoint now; write nothing more
RolloutChanged   a user ended the rollout meanwhile; nothing was written
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from millrace.registry.v1 import events_pb2
from millrace_registry import traffic_store
from millrace_registry.control_metrics import observe_stages
from millrace_registry.domain import (
    UNENDED,
    Deployment,
    Interface,
    Model,
    Rollout,
    RolloutState,
    Version,
    VersionState,
    utc_now,
)
from millrace_registry.endpoint_store import EndpointStore
from millrace_registry.evidence_store import EvidenceStore
from millrace_registry.hold_store import held_now, is_held, steps_of
from millrace_registry.rollout import EnterStep
from millrace_registry.route_store import RouteStore
from millrace_registry.rows import (
    deployment_of,
    rollout_of,
    version_of,
)
from millrace_registry.schema import (
    CONTROLLERS,
    DEPLOYMENTS,
    ROLLOUTS,
    VERSIONS,
)
from millrace_registry.stages import read_stages
from millrace_registry.strategies import Stage
from millrace_registry.traffic import Comparison, Seen, Traffic
from millrace_registry.traffic_store import Compared
from millrace_registry.transitions import (
    RecordFact,
    move_rollout,
    quarantine_version,
    read_model,
    reverse_rollout,
    set_version_state,
    settle_rollout,
    write_interface,
    write_measurements,
)
from millrace_registry.upsert import insert
from millrace_runtime import leases
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease

_LIVE = (VersionState.SERVING, VersionState.ROLLING_OUT)


@dataclass(frozen=True)
class Desired:
    """One model, as far as serving it goes.

    ``rollouts`` are those that have not ended, oldest first. ``versions`` are those that may
    have to be loaded: the serving one, those being rolled out, those that are held, and those
    that were retired, or held, until a moment ago.
    """

    model: Model
    deployment: Deployment
    rollouts: tuple[Rollout, ...]
    versions: tuple[Version, ...]
    held: Collection[int] = ()

    def keeps(self, version: Version) -> bool:
        """Whether a version is to answer; the others drain."""
        return version.state in _LIVE or version.number in self.held


class ControlStore:
    """The controller's view of the database, for one Triton endpoint."""

    def __init__(
        self,
        database: Database,
        record: RecordFact,
        *,
        endpoint: str,
        owner: str,
        lease_seconds: float,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._record = record
        self._endpoint = endpoint
        self._owner = owner
        self._duration = timedelta(seconds=lease_seconds)
        self._now = now
        self._lease: Lease | None = None
        self.evidence = EvidenceStore(database, self._fenced, now)
        self.endpoints = EndpointStore(database, endpoint, self._fenced, now)
        routes = RouteStore(database, endpoint, self._fenced, now)
        self.write_routes, self.routes = routes.write, routes.read

    def require(self) -> None:
        """Keep the right to control the endpoint. May be called by several threads.

        Raises:
            LeaseLost: another registry has it; only ``hold`` takes it again.
        """
        lease = self._held()
        with self._database.transaction() as connection:
            leases.renew(connection, CONTROLLERS, lease, now=self._now(), duration=self._duration)

    @property
    def renewal_seconds(self) -> float:
        """How often to call ``require`` so that the lease does not end."""
        return self._duration.total_seconds() / 3

    def hold(self) -> bool:
        """Take or keep the right to control the endpoint; say whether it is ours."""
        with contextlib.suppress(leases.LeaseLost):
            self.require()
            return True
        with self._database.transaction() as connection:
            values = {"id": self._endpoint, "epoch": 0}
            connection.execute(
                insert(connection, CONTROLLERS).values(**values).on_conflict_do_nothing()
            )
            self._lease = leases.claim(
                connection,
                CONTROLLERS,
                CONTROLLERS.c.id == self._endpoint,
                owner=self._owner,
                now=self._now(),
                duration=self._duration,
            )
        return self._lease is not None

    def give_up(self) -> None:
        """Let another registry take over at once."""
        if self._lease is not None:
            with self._database.transaction() as connection:
                leases.release(connection, CONTROLLERS, self._lease)
            self._lease = None

    def _held(self) -> Lease:
        lease = self._lease
        if lease is None:
            raise leases.LeaseLost(f"{self._endpoint} is not ours to control")
        return lease

    def desired(self, retired_since: datetime) -> list[Desired]:
        """All models that anything is to be done about."""
        active = ROLLOUTS.c.state.in_(UNENDED)
        with self._database.transaction() as connection:
            rows = connection.execute(select(ROLLOUTS).where(active).order_by(ROLLOUTS.c.id))
            rollouts = [rollout_of(row) for row in rows]
            versions = self._loadable(connection, retired_since)
            held = held_now(connection, self._now())
            keys = {(v.tenant, v.model) for v in versions}
            keys |= {(r.tenant, r.model) for r in rollouts}
            found = [
                self._desired_of(connection, key, rollouts, versions, held) for key in sorted(keys)
            ]
        return [desired for desired in found if desired is not None]

    def _loadable(self, connection: Connection, retired_since: datetime) -> list[Version]:
        retired = (VERSIONS.c.state == VersionState.RETIRED.value) & (
            VERSIONS.c.retire_time >= retired_since
        )
        live = VERSIONS.c.state.in_([state.value for state in _LIVE])
        wanted = live | retired | is_held(retired_since)
        rows = connection.execute(select(VERSIONS).where(wanted))
        return [version_of(row) for row in rows]

    def _desired_of(
        self,
        connection: Connection,
        key: tuple[str, str],
        rollouts: Sequence[Rollout],
        versions: Sequence[Version],
        held: Collection[tuple[str, str, int]],
    ) -> Desired | None:
        model = read_model(connection, *key)
        deployments = select(DEPLOYMENTS).where(
            DEPLOYMENTS.c.tenant == key[0], DEPLOYMENTS.c.model == key[1]
        )
        row = connection.execute(deployments).first()
        if model is None or row is None:
            return None
        return Desired(
            model,
            deployment_of(row),
            tuple(r for r in rollouts if (r.tenant, r.model) == key),
            tuple(v for v in versions if (v.tenant, v.model) == key),
            frozenset(number for *model_key, number in held if tuple(model_key) == key),
        )

    def steps(self, model: Model) -> Mapping[int, int]:
        """Steps of the model's newest checkpoints, each with the newest version made of it."""
        with self._database.transaction() as connection:
            return steps_of(connection, model.tenant, model.id)

    def traffic(self, tenant: str, model: str) -> dict[int, Traffic]:
        """What all gateways have seen of each version."""
        with self._database.transaction() as connection:
            return traffic_store.traffic_of(connection, tenant, model)

    def comparison(self, rollout: Rollout) -> Comparison:
        """What all gateways have compared of a rollout's two versions."""
        versions = (rollout.from_version, rollout.to_version)
        with self._database.transaction() as connection:
            return traffic_store.comparison_of(connection, rollout.tenant, rollout.model, *versions)

    def report_traffic(
        self,
        gateway: str,
        counters: Sequence[tuple[str, str, int, Traffic]],
        compared: Sequence[Compared] = (),
    ) -> None:
        """Take the counters of one life of one gateway: (tenant, model, version, traffic)."""
        now = self._now()
        with self._database.transaction() as connection:
            traffic_store.write_traffic(connection, gateway, counters, now)
            traffic_store.write_comparisons(connection, gateway, compared, now)

    def forget_traffic(self, before: datetime) -> None:
        """Drop what nobody has reported since ``before``, but of models being rolled out."""
        with self._fenced() as connection:
            traffic_store.forget(connection, before)

    def start_loading(self, rollout: Rollout, from_version: int) -> None:
        """The rollout's turn has come."""
        now = self._now()
        with self._fenced() as connection:
            started = replace(
                rollout,
                state=RolloutState.LOADING,
                from_version=from_version,
                load_time=now,
                step_time=now,
                update_time=now,
                reason="loading",
            )
            move_rollout(connection, rollout, started)
            key = (rollout.tenant, rollout.model, rollout.to_version)
            set_version_state(connection, key, VersionState.ROLLING_OUT)
            fact = events_pb2.RolloutStarted(
                rollout=rollout.name,
                model=rollout.model,
                from_version=from_version,
                to_version=rollout.to_version,
            )
            self._record(connection, rollout.tenant, fact, rollout.traceparent)

    def enter_step(self, rollout: Rollout, entered: EnterStep, stage: Stage, now: Seen) -> None:
        """Give the new version a share; what is seen is counted from ``now`` on."""
        moment = self._now()
        with self._fenced() as connection:
            after = replace(
                rollout,
                state=entered.state,
                step=entered.step,
                traffic_share=entered.share,
                mirror_share=entered.mirror_share,
                ready_time=rollout.ready_time or moment,
                stage=stage,
                step_time=moment,
                update_time=moment,
                new_before=now.new,
                old_before=now.old,
                shadow_before=now.shadow,
                requests=0,
                failures=0,
                seen=Seen(),
                reason=_reason_of(entered),
            )
            move_rollout(connection, rollout, after)
            fact = events_pb2.RolloutAdvanced(
                rollout=rollout.name,
                model=rollout.model,
                to_version=rollout.to_version,
                traffic_share=entered.share,
            )
            self._record(connection, rollout.tenant, fact, rollout.traceparent)

    def count(self, rollout: Rollout, seen: Seen) -> None:
        """Show what the present step has seen, and that the new version has answered."""
        with self._fenced() as connection:
            ready_time = rollout.ready_time or self._now()
            counted = replace(_counted(rollout, seen), ready_time=ready_time)
            move_rollout(connection, rollout, counted)

    def explain(self, rollout: Rollout, reason: str) -> None:
        """Show why a rollout waits."""
        with self._fenced() as connection:
            waiting = replace(rollout, reason=reason, update_time=self._now())
            move_rollout(connection, rollout, waiting)

    def supersede(self, rollout: Rollout) -> None:
        with self._fenced() as connection:
            now = self._now()
            ended = replace(
                rollout,
                state=RolloutState.SUPERSEDED,
                reason="a newer version came before its turn",
                update_time=now,
                finish_time=now,
            )
            move_rollout(connection, rollout, ended)

    def settle(self, rollout: Rollout, seen: Seen, reason: str) -> None:
        with self._fenced() as connection:
            counted = _counted(rollout, seen)
            now = self._now()
            settle_rollout(connection, counted, reason, now, self._record)
            stages = read_stages(connection, counted, now)
        observe_stages(stages)

    def reverse(self, rollout: Rollout, seen: Seen, reason: str) -> None:
        with self._fenced() as connection:
            counted = _counted(rollout, seen)
            reverse_rollout(connection, counted, reason, self._now(), self._record)

    def quarantine(self, version: Version, reason: str) -> None:
        """A version whose bytes are not what was registered is never served again."""
        with self._fenced() as connection:
            quarantine_version(connection, version, reason, self._now())
            fact = events_pb2.VersionQuarantined(version=version.name, reason=reason)
            self._record(connection, version.tenant, fact, version.traceparent)

    def learn_interface(self, version: Version, interface: Interface) -> None:
        """Keep what clients must know of a version, read from its verified artifact."""
        with self._fenced() as connection:
            key = (version.tenant, version.model, version.number)
            write_interface(connection, key, interface)

    def learn_measurements(self, version: Version, measurements: Mapping[str, object]) -> None:
        """Keep what serving has added to what was measured of a version."""
        with self._fenced() as connection:
            key = (version.tenant, version.model, version.number)
            write_measurements(connection, key, measurements)

    @contextmanager
    def _fenced(self) -> Iterator[Connection]:
        """A transaction that only the holder of the lease can commit."""
        lease = self._held()
        with self._database.transaction() as connection:
            held = leases.fenced(CONTROLLERS, lease).values(lease_owner=self._owner)
            leases.require_held(connection.execute(held), lease)
            yield connection


def _counted(rollout: Rollout, seen: Seen) -> Rollout:
    new = seen.new
    return replace(rollout, requests=new.requests, failures=new.failures, seen=seen)


def _reason_of(entered: EnterStep) -> str:
    if entered.state == RolloutState.SHADOW:
        return f"{entered.mirror_share:.0%} of the requests are mirrored"
    if entered.state == RolloutState.STANDBY:
        return "checked beside the old version, without traffic"
    if entered.state == RolloutState.SPLIT:
        return f"{entered.share:.0%} of the users"
    return f"{entered.share:.0%} of the traffic"
