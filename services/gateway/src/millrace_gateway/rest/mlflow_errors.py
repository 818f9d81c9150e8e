"""Errors under ``/mlflow`` as MLflow's clients read them: ``{"error_code": …, "message": …}``.

Codes and statuses are those of ``mlflow.exceptions.ERROR_CODE_TO_HTTP_STATUS``.
"""

from collections.abc import Mapping
from typing import Any

import orjson

_CODES: Mapping[int, str] = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    405: "ENDPOINT_NOT_FOUND",
    409: "RESOURCE_ALREADY_EXISTS",
    413: "BAD_REQUEST",
    429: "REQUEST_LIMIT_EXCEEDED",
    501: "NOT_IMPLEMENTED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}
_STATUSES: Mapping[int, int] = {409: 400}


def shaped(status: int, body: bytes) -> tuple[int, bytes]:
    """Status and body of an error of the gateway's, as MLflow says the same."""
    try:
        error: Any = orjson.loads(body)["error"]
        message, code = str(error["message"]), error["code"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return status, body
    word = _CODES.get(status, "INTERNAL_ERROR")
    if code == "unknown_url":
        word = "ENDPOINT_NOT_FOUND"
        message = f"{message}; the README of the gateway lists what it answers of MLflow's API"
    return _STATUSES.get(status, status), orjson.dumps({"error_code": word, "message": message})
