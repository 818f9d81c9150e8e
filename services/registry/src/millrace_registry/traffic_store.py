"""What gateways have counted, inside the caller's transaction: one row a life of a gateway."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime

from sqlalchemy import Connection, Table, delete, func, select

from millrace_registry.domain import UNENDED
from millrace_registry.schema import COMPARISONS, ROLLOUTS, TRAFFIC
from millrace_registry.traffic import Comparison, Traffic
from millrace_registry.upsert import insert

_TRAFFIC = tuple(field.name for field in fields(Traffic))
_COMPARISON = tuple(field.name for field in fields(Comparison))


@dataclass(frozen=True)
class Compared:
    """The answers of two versions of a model to the same requests."""

    tenant: str
    model: str
    old_version: int
    new_version: int
    comparison: Comparison


def traffic_of(connection: Connection, tenant: str, model: str) -> dict[int, Traffic]:
    """What all gateways have seen of each version."""
    sums = (func.coalesce(func.sum(TRAFFIC.c[name]), 0) for name in _TRAFFIC)
    query = (
        select(TRAFFIC.c.version, *sums)
        .where(TRAFFIC.c.tenant == tenant, TRAFFIC.c.model == model)
        .group_by(TRAFFIC.c.version)
    )
    return {row[0]: _traffic(row[1:]) for row in connection.execute(query)}


def _traffic(sums: Sequence[float]) -> Traffic:
    requests, failures, tokens, timed = (int(count) for count in sums[:-1])
    return Traffic(requests, failures, tokens, timed, float(sums[-1]))


def write_traffic(
    connection: Connection,
    gateway: str,
    counters: Sequence[tuple[str, str, int, Traffic]],
    now: datetime,
) -> None:
    """Take the counters of one life of one gateway: (tenant, model, version, traffic)."""
    for tenant, model, version, traffic in counters:
        keys = {"gateway": gateway, "tenant": tenant, "model": model, "version": version}
        _write(connection, TRAFFIC, keys, {**asdict(traffic), "update_time": now})


def comparison_of(
    connection: Connection, tenant: str, model: str, old_version: int, new_version: int
) -> Comparison:
    """What all gateways have compared of two versions."""
    table = COMPARISONS.c
    query = select(*(func.coalesce(func.sum(table[name]), 0) for name in _COMPARISON)).where(
        table.tenant == tenant,
        table.model == model,
        table.old_version == old_version,
        table.new_version == new_version,
    )
    sums = dict(zip(_COMPARISON, connection.execute(query).one(), strict=True))
    agreement = float(sums.pop("agreement"))
    return Comparison(agreement=agreement, **{name: int(value) for name, value in sums.items()})


def write_comparisons(
    connection: Connection, gateway: str, found: Sequence[Compared], now: datetime
) -> None:
    """Take what one life of one gateway has compared."""
    for each in found:
        keys = {
            "gateway": gateway,
            "tenant": each.tenant,
            "model": each.model,
            "old_version": each.old_version,
            "new_version": each.new_version,
        }
        _write(connection, COMPARISONS, keys, {**asdict(each.comparison), "update_time": now})


def forget(connection: Connection, before: datetime) -> None:
    """Drop counters that nobody has reported since ``before``: of a life that has ended.

    Those of models that are being rolled out stay, since a rollout is judged by differences.
    """
    for table in (TRAFFIC, COMPARISONS):
        judged = select(ROLLOUTS.c.id).where(
            ROLLOUTS.c.tenant == table.c.tenant,
            ROLLOUTS.c.model == table.c.model,
            ROLLOUTS.c.state.in_(UNENDED),
        )
        is_old = table.c.update_time.is_(None) | (table.c.update_time < before)
        connection.execute(delete(table).where(is_old, ~judged.exists()))


def _write(
    connection: Connection, table: Table, keys: dict[str, object], values: dict[str, object]
) -> None:
    statement = insert(connection, table).values(**keys, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=values))
