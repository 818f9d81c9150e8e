"""The lines of a batch's output and error files, as the OpenAI API writes them.

``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``: a refused
request is a response too; ``error`` says why there is none.
Reference: https://platform.openai.com/docs/api-reference/batch/request-output
"""

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import orjson

from millrace_gateway.batches.ask import Answered
from millrace_gateway.batches.domain import Batch, Line, LineAnswer, Status, Usage

_PAGE_SIZE = 200
# Why a line was not carried out, by how its batch ended.
_REASONS: Mapping[Status, tuple[str, str]] = {
    Status.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    Status.CANCELLED: (
        "batch_cancelled",
        "This request was not executed because the batch was cancelled.",
    ),
}


def answered_line(line_id: str, custom_id: str, answered: Answered) -> LineAnswer:
    """What an HTTP answer becomes."""
    body = _parsed(answered.body)
    response = {
        "status_code": answered.status,
        "request_id": answered.request_id,
        "body": body,
    }
    is_success = answered.status == 200
    usage = _usage(body) if is_success else Usage()
    return LineAnswer(is_success, _document(line_id, custom_id, response, None), usage)


def unreadable_line(line_id: str, custom_id: str) -> LineAnswer:
    """What becomes of a line when the input file was deleted before it was asked."""
    message = "The batch's input file was deleted before this request was executed."
    error = {"code": "input_file_deleted", "message": message}
    return LineAnswer(False, _document(line_id, custom_id, None, error))


def write(
    batch: Batch,
    page: Callable[[int, int], Sequence[Line]],
    output: IO[bytes],
    mistakes: IO[bytes],
) -> None:
    """Write every line into the file where it belongs, in the order of the input.

    Written again, of the same batch, the files are the same.

    Args:
        page: lines after a number, and how many at most.
    """
    after = 0
    while lines := page(after, _PAGE_SIZE):
        for line in lines:
            document = line.answer or _not_executed(batch, line)
            target = output if line.is_success else mistakes
            target.write(document.encode() + b"\n")
        after = lines[-1].number


def _not_executed(batch: Batch, line: Line) -> str:
    code, message = _REASONS[batch.ending()]
    error = {"code": code, "message": message}
    return _document(batch.line_id(line.number), line.custom_id, None, error)


def _document(
    line_id: str, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None
) -> str:
    content = {"id": line_id, "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(content).decode()


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")


def _usage(body: Any) -> Usage:
    """Tokens, by the names that chats, completions and embeddings, or responses have for them."""
    told = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(told, dict):
        return Usage()
    inputs = told.get("prompt_tokens_details") or told.get("input_tokens_details") or {}
    outputs = told.get("completion_tokens_details") or told.get("output_tokens_details") or {}
    return Usage(
        input_tokens=told.get("prompt_tokens") or told.get("input_tokens") or 0,
        cached_tokens=inputs.get("cached_tokens") or 0,
        output_tokens=told.get("completion_tokens") or told.get("output_tokens") or 0,
        reasoning_tokens=outputs.get("reasoning_tokens") or 0,
    )
