"""A client of raw sockets: some 20 µs a message, to leave the processors to what is measured.

It reads no more of an answer than it needs.
"""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import cast

TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_HEAD_END = b"\r\n\r\n"
_CHUNKS_END = b"0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_CLOSES = b"\r\nconnection: close"
_KEPT_BYTES = 4096  # of an answer's end: enough for its usage
_PIECE, _EMPTY_PIECE = b'"content":"', b'"content":""'


def request(path: str, key: str, body: Mapping[str, object]) -> bytes:
    """An HTTP/1.1 request that posts ``body`` as JSON."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: server\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def connect(host: str, port: int) -> "Connection":
    _, made = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return made


class Connection(asyncio.Protocol):
    """One request at a time.

    Attributes:
        first_byte: when the body of the answer began.
        pieces: when text came, each time some did.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.head = b""
        self.first_byte = 0.0
        self.pieces: list[float] = []
        self._transport: asyncio.WriteTransport | None = None
        self._answer = b""
        self._left: int | None = None  # of a body of known length
        self._is_in_body = False
        self.done: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.WriteTransport, transport), True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self.done is not None and not self.done.done():
            self.done.set_result(b"HTTP/1.1 000 broken off\r\n\r\n" + self._answer)

    def ask(self, request: bytes) -> "asyncio.Future[bytes]":
        """The answer: its head, and the end of its body."""
        assert self._transport is not None
        self._answer, self._left, self._is_in_body = b"", None, False
        self.head, self.first_byte, self.pieces = b"", 0.0, []
        self.done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        if not self._is_in_body:
            data = self._begin(data)
        if not data:
            return
        self.first_byte = self.first_byte or time.perf_counter()
        if data.count(_PIECE) > data.count(_EMPTY_PIECE):
            self.pieces.append(time.perf_counter())
        self._answer = (self._answer + data)[-_KEPT_BYTES:]
        if self._left is not None:
            self._left -= len(data)
        if self._left == 0 or (self._left is None and self._answer.endswith(_CHUNKS_END)):
            self._end()

    def _begin(self, data: bytes) -> bytes:
        """What is left of ``data`` when the head is complete; nothing before."""
        head, end, body = (self._answer + data).partition(_HEAD_END)
        if not end:
            self._answer += data
            return b""
        self.head, self._answer, self._is_in_body = head, b"", True
        found = _LENGTH.search(head)
        self._left = int(found[1]) if found else None
        return body

    def _end(self) -> None:
        if _CLOSES in self.head.lower() and self._transport is not None:
            self.is_open = False
            self._transport.close()
        if self.done is not None and not self.done.done():
            self.done.set_result(self.head + _HEAD_END + self._answer)
