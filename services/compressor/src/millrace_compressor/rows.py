"""Rows of the service's tables as values of its domain, and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from millrace_compressor.domain import (
    Checkpoint,
    Compression,
    Content,
    Failure,
    GatePolicy,
    Load,
    Measurements,
    Order,
    Parity,
    Progress,
    State,
    Target,
    Verdict,
)
from millrace_runtime.manifest import sha256_bytes
from millrace_runtime.parity import Stage


def recipe_digest(order: Order) -> str:
    """Identifies what is done to a checkpoint, and how it is judged."""
    gate = {name: value for name, value in asdict(order.gate).items() if value is not None}
    document = {"target": order.target.value, "gate": gate, "recipe": order.recipe}
    if order.task:  # orders without one are known by what they were known by before
        document["task"] = order.task
    return sha256_bytes(json.dumps(document, sort_keys=True).encode())


def compression_values(compression: Compression) -> dict[str, Any]:
    """Column values of a compression that is new."""
    order = compression.order
    return {
        "id": compression.id,
        "tenant": order.tenant,
        "model": order.checkpoint.model,
        "checkpoint_step": order.checkpoint.step,
        "checkpoint_final": order.checkpoint.final,
        "checkpoint_name": order.checkpoint.name,
        "checkpoint_digest": order.checkpoint.content.digest,
        "checkpoint": asdict(order.checkpoint),
        "target": order.target.value,
        "recipe_digest": recipe_digest(order),
        "gate": asdict(order.gate),
        "recipe": dict(order.recipe),
        "task": dict(order.task) or None,
        "deployment": order.deployment,
        "state": compression.state.value,
        "progress": asdict(compression.progress),
        "attempts": 0,
        "traceparent": compression.traceparent,
        "requested_time": order.requested_time,
        "create_time": compression.create_time,
    }


def compression_of(row: Row[Any]) -> Compression:
    order = Order(
        tenant=row.tenant,
        checkpoint=checkpoint_of(row.checkpoint),
        target=Target(row.target),
        gate=GatePolicy(**row.gate),
        deployment=row.deployment,
        requested_time=row.requested_time,
        recipe=row.recipe or {},
        task=row.task or {},
    )
    verdict = row.verdict
    return Compression(
        id=row.id,
        order=order,
        traceparent=row.traceparent,
        create_time=row.create_time,
        state=State(row.state),
        progress=Progress(**row.progress),
        failure=Failure(row.failure_reason, row.failure_message) if row.failure_reason else None,
        verdict=Verdict(verdict["passed"], tuple(verdict["reasons"])) if verdict else None,
        measurements=measurements_of(row.measurements) if row.measurements else None,
        artifact=Content(**row.artifact) if row.artifact else None,
        start_time=row.start_time,
        finish_time=row.finish_time,
    )


def measurements_of(document: Mapping[str, Any]) -> Measurements:
    """Measurements as the job reports them, and as they are kept; what the domain does not judge
    stays in the artifact's ``quality.json``."""
    known = {k: v for k, v in document.items() if k in Measurements.__dataclass_fields__}
    found = known.get("parity")
    if found:
        stages = tuple(Stage(**stage) for stage in found["stages"])
        known["parity"] = Parity(found["probes"], stages)
    for name in ("original_loads", "artifact_loads"):
        known[name] = tuple(Load(**load) for load in known.get(name, ()))
    return Measurements(**known)


def checkpoint_of(document: dict[str, Any]) -> Checkpoint:
    content, evaluation = Content(**document["content"]), Content(**document["evaluation"])
    return Checkpoint(**{**document, "content": content, "evaluation": evaluation})
