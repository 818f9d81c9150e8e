"""``/v1/recalls``: which versions learnt from a row, and taking them out of service in one call.

A row is known by a hash (``millrace_examples.row_hash``): the sha256 of its text where it is a
text or has one in ``text``, else of its JSON as RFC 8785 has it.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from google.protobuf.message import Message
from pydantic import BaseModel, Field, JsonValue

from millrace.data.v1 import rows_pb2
from millrace.registry.v1 import recalls_pb2 as pb
from millrace.registry.v1 import service_pb2
from millrace_examples.row_hash import row_hash, spelled
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.rollouts import LineageEdge, LineageNode
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import (
    Id,
    RequestBody,
    enum_value,
    enum_word,
    identifier,
    seconds,
)
from millrace_runtime.errors import InvalidArgument

ROUTER = router("recalls")

_MOST_ROWS = 10_000
_FIELDS = {"hashes": "hashes", "file": "file", "reason": "reason", "request_id": "idempotency-key"}

Row = Annotated[
    dict[str, JsonValue] | Annotated[str, Field(min_length=1)],
    Field(description="A row as it was uploaded: a JSON object, or the text of a document."),
]
Rows = Annotated[list[Row], Field(max_length=_MOST_ROWS)]
Hash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class CreateRecall(RequestBody):
    """Rows, hashes of rows and an uploaded file of rows add up; one of them is needed.

    ``quarantine`` takes every version that learnt from one of them out of service, and
    lets the newest that served before and did not serve. ``roll_back`` moves serving alone.
    ``report`` changes nothing. But for a report the recall stands until it is lifted: what is made
    of the same data later is not served either, nor what is made of other data with the same rows.
    """

    rows: Rows = Field(default=[])
    hashes: Annotated[list[Hash], Field(max_length=_MOST_ROWS)] = Field(default=[])
    file: Id | None = None
    action: Literal["report", "quarantine", "roll_back"] = "report"
    reason: Annotated[str, Field(max_length=1024)] = ""


class LiftRecall(RequestBody):
    reason: Annotated[str, Field(max_length=1024)] = ""


class HashRows(RequestBody):
    rows: Annotated[Rows, Field(min_length=1)]


class RowHashes(BaseModel):
    """In the order of the rows."""

    object: Literal["row_hashes"] = "row_hashes"
    hashes: list[str]


class Cause(BaseModel):
    """What holds some of the rows. Rows that are ``held_out`` judged models, and were not learnt.

    ``hashes``: the first of them. ``joined_at``: when the standing recall found them there; null:
    it was made with it."""

    id: str
    kind: str
    digest: str | None
    held_out: bool
    row_count: int
    hashes: list[str]
    joined_at: int | None


class RecalledVersion(BaseModel):
    """A version that learnt from a cause: as it was, what was done, and as it is now."""

    id: str
    model: str
    version: int
    status_before: str
    was_live: bool
    outcome: str
    successor: int | None
    status: str
    live: bool


class Recall(BaseModel):
    """``unindexed``: files and datasets of which nobody can say whether they hold the rows.

    ``nodes`` and ``edges``: all that was made of the causes; empty in lists. ``status``: a report
    has ``reported``; any other is ``standing``, until it is ``lifted``."""

    id: str
    object: Literal["recall"] = "recall"
    created_at: int
    action: str
    status: Literal["reported", "standing", "lifted"]
    reason: str
    lifted_at: int | None
    lift_reason: str | None
    causes: list[Cause]
    unindexed: list[str]
    versions: list[RecalledVersion]
    nodes: list[LineageNode]
    edges: list[LineageEdge]


@ROUTER.post("/v1/row_hashes", response_model=RowHashes)
async def hash_rows(body: HashRows, caller: CallerOf) -> RowHashes:
    """What rows are known by; nothing is looked for, and nothing is kept."""
    return RowHashes(hashes=_hashes(body.rows))


@ROUTER.post("/v1/recalls", response_model=Recall)
async def create_recall(body: CreateRecall, caller: CallerOf) -> Recall:
    """Find every version that learnt from a row, and deal with them in one step."""
    hashes = [*body.hashes, *_hashes(body.rows)]
    if not hashes and body.file is None:
        raise InvalidArgument(
            "give rows, hashes of rows, or the id of an uploaded file of rows", field="rows"
        )
    if len(hashes) > _MOST_ROWS:
        raise InvalidArgument(
            f"{len(hashes)} rows and hashes; at most {_MOST_ROWS} at once: upload them as a file, "
            "and give its id as 'file'",
            field="rows",
        )
    found = await _find(caller, hashes, body.file)
    request = pb.CreateRecallRequest(
        parent=caller.parent,
        causes=[_cause_of(holder) for holder in found.holders],
        unindexed=found.unindexed,
        reason=body.reason,
        request_id=caller.request_id,
        hashes=hashes,
        file=_file_name(caller, body.file),
    )
    request.action = enum_value(pb.RecallAction, body.action, "RECALL_ACTION_")  # type: ignore[assignment]
    response = await upstream.call(caller.upstream.recalls.CreateRecall, request, _FIELDS)
    return _recall(caller, response.recall)


@ROUTER.get("/v1/recalls", response_model=ListObject[Recall])
async def list_recalls(caller: CallerOf, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    request = pb.ListRecallsRequest(
        parent=caller.parent, page_size=page_size(limit), page_token=token_after(after)
    )
    response = await upstream.call(caller.upstream.recalls.ListRecalls, request)
    items = [_recall(caller, recall) for recall in response.recalls]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/v1/recalls/{recall_id}", response_model=Recall)
async def get_recall(recall_id: str, caller: CallerOf) -> Recall:
    """A recall, with the versions as they are now."""
    request = pb.GetRecallRequest(name=caller.name("recalls", recall_id, "recall"))
    response = await upstream.call(caller.upstream.recalls.GetRecall, request)
    return _recall(caller, response.recall)


@ROUTER.post("/v1/recalls/{recall_id}/lift", response_model=Recall)
async def lift_recall(recall_id: str, caller: CallerOf, body: LiftRecall | None = None) -> Recall:
    """End a standing recall. What it alone kept out of service may be rolled out again; nothing
    serves by itself."""
    request = pb.LiftRecallRequest(
        name=caller.name("recalls", recall_id, "recall"), reason=body.reason if body else ""
    )
    response = await upstream.call(caller.upstream.recalls.LiftRecall, request)
    return _recall(caller, response.recall)


async def _find(caller: Caller, hashes: list[str], file: str | None) -> rows_pb2.FindRowsResponse:
    name = _file_name(caller, file)
    request = rows_pb2.FindRowsRequest(parent=caller.parent, hashes=hashes, file=name)
    return await upstream.call(caller.upstream.rows.FindRows, request, _FIELDS)


def _file_name(caller: Caller, file: str | None) -> str:
    return caller.name("files", file, "file") if file else ""


def _hashes(rows: Iterable[dict[str, JsonValue] | str]) -> list[str]:
    return [spelled(row_hash(row)) for row in rows]


def _cause_of(holder: rows_pb2.RowHolder) -> pb.RecallCause:
    return pb.RecallCause(
        name=holder.name,
        digest=holder.digest,
        held_out=holder.held_out,
        row_count=holder.row_count,
        hashes=holder.hashes,
    )


def _recall(caller: Caller, message: pb.Recall) -> Recall:
    return Recall(
        id=identifier(message.name) or "",
        created_at=seconds(message.create_time),
        action=enum_word(pb.RecallAction, message.action, "RECALL_ACTION_"),
        status=_status(message),
        reason=message.reason,
        lifted_at=_seconds(message, "lift_time"),
        lift_reason=message.lift_reason or None,
        causes=[_cause(cause) for cause in message.causes],
        unindexed=[identifier(name) or "" for name in message.unindexed],
        versions=[_version(version) for version in message.versions],
        nodes=[
            LineageNode(id=caller.relative(node.name), kind=node.kind, digest=node.digest or None)
            for node in message.nodes
        ],
        edges=[
            LineageEdge(cause=caller.relative(edge.cause), effect=caller.relative(edge.effect))
            for edge in message.edges
        ],
    )


def _cause(message: pb.RecallCause) -> Cause:
    return Cause(
        id=identifier(message.name) or "",
        kind="dataset" if "/datasets/" in message.name else "file",
        digest=message.digest or None,
        held_out=message.held_out,
        row_count=message.row_count,
        hashes=list(message.hashes),
        joined_at=_seconds(message, "join_time"),
    )


def _status(message: pb.Recall) -> Literal["reported", "standing", "lifted"]:
    if message.action == pb.RECALL_ACTION_REPORT:
        return "reported"
    return "lifted" if message.HasField("lift_time") else "standing"


def _seconds(message: Message, field: str) -> int | None:
    return seconds(getattr(message, field)) if message.HasField(field) else None


def _version(message: pb.RecalledVersion) -> RecalledVersion:
    model, _, number = message.name.split("/models/", 1)[1].rpartition("/versions/")
    return RecalledVersion(
        id=f"{model}@{number}",
        model=model,
        version=int(number),
        status_before=_state(message.state_before),
        was_live=message.was_live,
        outcome=enum_word(pb.RecallOutcome, message.outcome, "RECALL_OUTCOME_"),
        successor=message.successor or None,
        status=_state(message.state),
        live=message.is_live,
    )


def _state(state: int) -> str:
    return enum_word(service_pb2.VersionState, state, "VERSION_STATE_")
