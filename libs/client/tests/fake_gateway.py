"""A gateway without a network: answers as the real one does, from a table of routes."""

import json
from collections.abc import Callable

import httpx

Answer = httpx.Response | Callable[[httpx.Request], httpx.Response]


class FakeGateway:
    """Routes by ``METHOD /path``; keeps every request for the test to look at."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._answers: dict[str, list[Answer]] = {}

    def answer(self, route: str, *answers: Answer | dict[str, object]) -> "FakeGateway":
        """Answers for a route, one after another; the last is given for ever."""
        self._answers[route] = [
            httpx.Response(200, json=each) if isinstance(each, dict) else each for each in answers
        ]
        return self

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._handle)

    def body(self, index: int = -1) -> dict[str, object]:
        return json.loads(self.requests[index].content)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        route = f"{request.method} {request.url.path}"
        answers = self._answers.get(route)
        if answers is None:
            return error(404, f"Unknown request URL: {route}", code="unknown_url")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(request) if callable(answer) else answer


def error(status: int, message: str, code: str = "", param: str = "") -> httpx.Response:
    body = {"message": message, "type": "x", "param": param or None, "code": code or None}
    return httpx.Response(status, json={"error": body})


def page(*items: dict[str, object], has_more: bool = False) -> dict[str, object]:
    return {"object": "list", "data": list(items), "has_more": has_more}


def stream(*events: str) -> httpx.Response:
    """Server-sent events, as their text."""
    body = "".join(f"{event}\n\n" for event in events)
    return httpx.Response(200, text=body, headers={"content-type": "text/event-stream"})
