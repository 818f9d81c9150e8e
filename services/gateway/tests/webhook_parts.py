"""What webhooks are tested with: facts, a store with a clock, and a receiver that is a real server
and verifies what comes with the ``openai`` package."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any

import openai
from google.protobuf.message import Message

from millrace.topology import fact_of
from millrace.tuner.v1 import events_pb2 as tuner
from millrace_gateway.webhooks.destination import Destinations
from millrace_gateway.webhooks.domain import Endpoint, Wish
from millrace_gateway.webhooks.signing import SigningKey
from millrace_gateway.webhooks.store import WebhookStore
from millrace_runtime.cloudevent import Event

KEY = SigningKey(b"k" * 32)
LOOPBACK = (ip_network("127.0.0.0/8"),)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SUCCEEDED = tuner.JobSucceeded(job="tenants/default/jobs/ftjob-1", tuned_model="demo-tuned")
_NUMBERS = iter(range(1, 10**9))


def fact(message: Message, time: datetime, tenant: str = "default", number: int = 0) -> Event:
    identifier = f"fact-{number or next(_NUMBERS):026}"
    return Event(identifier, fact_of(type(message)), tenant, message, time, TRACEPARENT)


def an_endpoint(
    store: WebhookStore, *patterns: str, tenant: str = "default", url: str = "https://a.example/"
) -> Endpoint:
    wish = Wish("mine", url, patterns or ("*",))
    return store.add(tenant, wish, KEY.new_secret(), "", "")


def local_destinations() -> Destinations:
    """This machine alone, without TLS."""
    return Destinations(LOOPBACK, allow_http=True)


@dataclass
class Receiver:
    """A receiver as its owner would write it: ``statuses`` are answered in turn, then 200.

    Attributes:
        events: what ``unwrap`` made of what came, answered whichever way.
        refused: what did not verify.
        held: while set, requests are not answered.
    """

    statuses: list[int] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    secret: str = ""
    events: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    told: list[Mapping[str, str]] = field(default_factory=list)
    refused: list[Exception] = field(default_factory=list)
    body: bytes = b"thanks"
    url: str = ""

    def take(self, body: bytes, headers: Mapping[str, str]) -> int:
        client = openai.OpenAI(api_key="none")
        try:
            self.events.append(client.webhooks.unwrap(body, headers, secret=self.secret))
        except Exception as error:  # told to the test, whatever it is
            self.refused.append(error)
            return 401
        self.ids.append(headers["webhook-id"])
        self.told.append(headers)
        return self.statuses.pop(0) if self.statuses else 200


@contextmanager
def receiving(**settings: Any) -> Iterator[Receiver]:
    """A receiver on a loopback port of its own."""
    receiver = Receiver(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = receiver.take(body, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(receiver.body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
