"""What commands are given: the environment, the home, and how to reach the gateway."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
import typer

from millrace_client.api import Millrace
from millrace_client.endpoint import Endpoint, resolve
from millrace_client.home import Home


@dataclass(frozen=True)
class Connection:
    """Where commands look. ``transport`` stands in for the network in tests."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    home: Home = field(default_factory=Home.from_environ)
    transport: httpx.BaseTransport | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Raises NoGateway: nobody says where one is."""
        return resolve(self.environ, self.home)


def connection(context: typer.Context) -> Connection:
    found = context.obj
    assert isinstance(found, Connection), "cli.py makes the connection"
    return found


def api(context: typer.Context) -> Millrace:
    """A client of the gateway.

    Raises:
        NoGateway: nobody says where one is.
    """
    made = connection(context)
    return Millrace(made.endpoint, transport=made.transport)
