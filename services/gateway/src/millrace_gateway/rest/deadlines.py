"""How long a REST client waits for its answer, as its headers say.

``grpc-timeout`` is for every client: grpc-gateway takes the same header from REST clients, so that
it means the same before both APIs of the gateway. ``x-stainless-read-timeout`` is what the
``openai`` package sends by itself with every request: the longest that it waits for bytes, in
seconds. Before an answer that is not streamed none come, so that it bounds the whole. Of a stream
it bounds the wait for the first piece; between pieces the client keeps to it by itself.

References: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md (Timeout) and
``openai._base_client.BaseClient._build_headers``.
"""

import math
import re
from typing import Any

from fastapi import Request

from millrace_gateway.deadline import Deadline, moment_after
from millrace_runtime.errors import InvalidArgument

HEADER = "grpc-timeout"
_READ_HEADER = "x-stainless-read-timeout"
_FORM = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS_OF = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

# For the OpenAPI document: the header is read without FastAPI, which takes longer over it.
PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "schema": {"type": "string", "pattern": f"^{_FORM.pattern}$"},
            "description": "How long the client waits for the whole answer, as gRPC writes it: "
            "`30S`, `1500m` (milliseconds). When it has passed the work ends: 504.",
        }
    ]
}


def deadline_of(request: Request, is_streamed: bool = False) -> Deadline:
    """Until when the client waits, from now on.

    Raises:
        InvalidArgument: ``grpc-timeout`` is not as gRPC has it.
    """
    whole, read = _given_seconds(request), _read_seconds(request)
    begins_by = moment_after(_least(whole, read))
    return Deadline(begins_by, moment_after(whole) if is_streamed else begins_by)


def end_of(request: Request) -> float | None:
    """The moment at which the client wants the whole answer, by ``grpc-timeout`` alone.

    Raises:
        InvalidArgument: it is not as gRPC has it.
    """
    return moment_after(_given_seconds(request))


def _given_seconds(request: Request) -> float | None:
    value = request.headers.get(HEADER)
    if value is None:
        return None
    found = _FORM.fullmatch(value.strip())
    if found is None or not int(found[1]):
        raise InvalidArgument(
            f"the header {HEADER} must be a positive number of at most 8 digits and one of the "
            f"units H, M, S, m (milliseconds), u and n, as in 30S; not {value!r}",
            field=HEADER,
        )
    return int(found[1]) * _SECONDS_OF[found[2]]


def _read_seconds(request: Request) -> float | None:
    """What the ``openai`` package says; others may write into this header what they like."""
    try:
        seconds = float(request.headers.get(_READ_HEADER, ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _least(*seconds: float | None) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
