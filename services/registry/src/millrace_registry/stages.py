"""Where the time went, from a checkpoint's end until all traffic went to its version."""

from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise

from sqlalchemy import Connection, select

from millrace_registry.domain import Rollout, Version
from millrace_registry.lineage_store import checkpoint_time
from millrace_registry.schema import ROLLOUTS
from millrace_registry.transitions import read_version

STAGES = ("compress_wait", "compress", "register", "queue", "load", "judge")
"""In the order in which a checkpoint goes through them."""


def read_stages(connection: Connection, rollout: Rollout, now: datetime) -> Mapping[str, float]:
    """Of a rollout that settles ``now``; nothing of one that is not its version's first."""
    version = read_version(connection, rollout.tenant, rollout.model, rollout.to_version)
    if version is None or _is_again(connection, rollout):
        return {}
    began = checkpoint_time(connection, version.checkpoint_name)
    return stage_seconds(rollout, version, began, now)


def stage_seconds(
    rollout: Rollout, version: Version, began: datetime | None, now: datetime
) -> Mapping[str, float]:
    """Seconds by stage, and ``total``; what is not known of both ends of a stage is left out.

    Clocks of several machines may be apart: no stage is shorter than nothing.
    """
    moments = (
        began,
        version.compress_start_time,
        version.compress_finish_time,
        version.create_time,
        rollout.load_time,
        rollout.ready_time or now,
        now,
    )
    found = {
        stage: max(0.0, (end - begin).total_seconds())
        for stage, (begin, end) in zip(STAGES, pairwise(moments), strict=True)
        if begin is not None and end is not None
    }
    if began is not None:
        found["total"] = max(0.0, (now - began).total_seconds())
    return found


def _is_again(connection: Connection, rollout: Rollout) -> bool:
    """Whether the version was rolled out before: its checkpoint has waited since for nobody."""
    earlier = select(ROLLOUTS.c.id).where(
        ROLLOUTS.c.tenant == rollout.tenant,
        ROLLOUTS.c.model == rollout.model,
        ROLLOUTS.c.to_version == rollout.to_version,
        ROLLOUTS.c.id < rollout.id,
    )
    return connection.execute(earlier.limit(1)).first() is not None
