"""The input of a batch: JSON Lines, each a request to the batch's endpoint.

``{"custom_id": "…", "method": "POST", "url": "/v1/…", "body": {…}}``. Reference:
https://platform.openai.com/docs/guides/batch, whose words for what is wrong are used.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from millrace_gateway.batches.domain import BatchError, Line
from millrace_gateway.batches.schema import LONGEST_CUSTOM_ID

_FIELDS = ("custom_id", "method", "url", "body")
_LONGEST_MODEL = 300
_MOST_ERRORS = 100


@dataclass(frozen=True)
class InputLimits:
    """How much one batch may ask for: lines, and bytes of one line."""

    lines: int
    line_bytes: int


@dataclass
class CheckedInput:
    """What was found in an input file; it is good when there are no errors.

    Attributes:
        model: that every line asks; empty when there is none.
        errors: the first 100, in the order of their lines.
    """

    model: str = ""
    lines: list[Line] = field(default_factory=list)
    errors: list[BatchError] = field(default_factory=list)


class _Wrong(Exception):
    """A line cannot be carried out."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def check(source: Iterable[bytes], endpoint: str, limits: InputLimits) -> CheckedInput:
    """Read all lines, and say of each whether it can be carried out.

    Args:
        source: the file, line by line.
    """
    checker = _Checker(endpoint, limits)
    for number, raw in numbered(source):
        if not checker.take(number, raw):
            break
    found = checker.found
    if not found.lines and not found.errors:
        found.errors.append(BatchError("empty_file", "The batch input file is empty."))
    return found


def numbered(source: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, by their numbers, which count from 1."""
    for number, raw in enumerate(source, 1):
        if raw.strip():
            yield number, raw


def chosen(
    source: Iterable[bytes], numbers: Collection[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The requests of some lines of a file that was checked."""
    for number, raw in numbered(source):
        if number in numbers:
            yield number, orjson.loads(raw)


class _Checker:
    def __init__(self, endpoint: str, limits: InputLimits) -> None:
        self.found = CheckedInput()
        self._endpoint = endpoint
        self._limits = limits
        self._seen: set[str] = set()
        self._count = 0

    def take(self, number: int, raw: bytes) -> bool:
        """Check one line; false when there is no use in reading on."""
        self._count += 1
        if self._count > self._limits.lines:
            message = f"A batch may hold {self._limits.lines} requests."
            self.found.errors.append(BatchError("too_many_tasks", message))
            return False
        try:
            self.found.lines.append(Line(number, self._check(raw)))
        except _Wrong as wrong:
            error = BatchError(wrong.code, str(wrong), number, wrong.param)
            self.found.errors.append(error)
        return len(self.found.errors) < _MOST_ERRORS

    def _check(self, raw: bytes) -> str:
        """The line's custom id.

        Raises:
            _Wrong: it cannot be carried out.
        """
        if len(raw) > self._limits.line_bytes:
            message = f"This line is longer than {self._limits.line_bytes} bytes."
            raise _Wrong("request_too_large", message)
        request = _request(raw)
        custom_id = self._custom_id(request["custom_id"])
        if request["method"] != "POST":
            raise _Wrong("invalid_method", "The method must be 'POST'.", "method")
        if request["url"] != self._endpoint:
            message = f"The url must be the batch's endpoint, '{self._endpoint}'."
            raise _Wrong("url_mismatch", message, "url")
        self._check_body(request["body"])
        return custom_id

    def _custom_id(self, custom_id: Any) -> str:
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_CUSTOM_ID:
            message = f"The custom_id must be a string of 1 to {LONGEST_CUSTOM_ID} characters."
            raise _Wrong("invalid_value", message, "custom_id")
        if "\0" in custom_id:
            message = "The custom_id must not hold the character U+0000."
            raise _Wrong("invalid_value", message, "custom_id")
        if custom_id in self._seen:
            message = "The custom_id of this request was used in another line."
            raise _Wrong("duplicate_custom_id", message, "custom_id")
        self._seen.add(custom_id)
        return custom_id

    def _check_body(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise _Wrong("invalid_type", "The body must be an object.", "body")
        model = body.get("model")
        if not isinstance(model, str) or not 0 < len(model) <= _LONGEST_MODEL or "\0" in model:
            raise _Wrong("missing_required_parameter", "The body names no model.", "body.model")
        self.found.model = self.found.model or model
        if model != self.found.model:
            message = f"All requests must ask one model; the first asks {self.found.model!r}."
            raise _Wrong("model_mismatch", message, "body.model")
        if body.get("stream"):
            raise _Wrong("unsupported_parameter", "A batch cannot stream.", "body.stream")
        if body.get("service_tier") == "priority":
            message = "A batch's requests are of low priority; 'priority' cannot be had."
            raise _Wrong("unsupported_parameter", message, "body.service_tier")


def _request(raw: bytes) -> dict[str, Any]:
    """A line's object, with all of its fields and no others.

    Raises:
        _Wrong: it is something else.
    """
    try:
        request = orjson.loads(raw)
    except orjson.JSONDecodeError:
        message = "This line is not parseable as valid JSON."
        raise _Wrong("invalid_json_line", message) from None
    if not isinstance(request, dict):
        raise _Wrong("invalid_json_line", "This line is not a JSON object.")
    for name in _FIELDS:
        if name not in request:
            message = f"Missing required parameter: '{name}'."
            raise _Wrong("missing_required_parameter", message, name)
    for name in request:
        if name not in _FIELDS:
            message = f"Unrecognized request argument supplied: {name}"
            raise _Wrong("unknown_parameter", message, name)
    return request
