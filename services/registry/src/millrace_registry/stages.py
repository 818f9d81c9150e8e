"""Where the time went, from a checkpoint's end until all traffic went to its version."""

from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise

from sqlalchemy import Connection

from millrace_registry.domain import Rollout, Version
from millrace_registry.lineage_store import checkpoint_time
from millrace_registry.transitions import read_version

STAGES = ("compress_wait", "compress", "register", "queue", "load", "judge")
"""In the order in which a checkpoint goes through them."""


def read_stages(connection: Connection, rollout: Rollout, now: datetime) -> Mapping[str, float]:
    """Of a rollout that settles ``now``."""
    version = read_version(connection, rollout.tenant, rollout.model, rollout.to_version)
    if version is None:
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
