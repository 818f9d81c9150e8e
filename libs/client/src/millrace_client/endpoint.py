"""Which gateway to talk to, and with which key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from millrace_client.errors import NoGateway
from millrace_client.home import Home

BASE_URL_VARIABLE = "MILLRACE_BASE_URL"
OPENAI_BASE_URL_VARIABLE = "OPENAI_BASE_URL"
API_KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    """A gateway and a key for it; ``base_url`` is without ``/v1``."""

    base_url: str
    api_key: str

    @property
    def openai_base_url(self) -> str:
        return f"{self.base_url}/v1"


def resolve(environ: Mapping[str, str], home: Home) -> Endpoint:
    """The gateway that the environment names, or else the mesh of ``home``.

    A key from the environment goes only where the environment says: one that is meant for
    another provider is not sent to a local mesh, nor a local operator's key elsewhere.

    Raises:
        NoGateway: neither is there, or the environment names a gateway without a key.
    """
    told = environ.get(BASE_URL_VARIABLE) or environ.get(OPENAI_BASE_URL_VARIABLE)
    if not told:
        return of_home(home)
    base_url = told.rstrip("/").removesuffix("/v1")
    api_key = environ.get(API_KEY_VARIABLE, "")
    if not api_key:
        local = _of_home_or_none(home)
        if local is None or local.base_url != base_url:
            raise NoGateway(f"{API_KEY_VARIABLE} is not set; {base_url} asks for a key")
        return local
    return Endpoint(base_url, api_key)


def of_home(home: Home) -> Endpoint:
    """The mesh of ``home``, with its operator's key.

    Raises:
        NoGateway: no mesh was ever started there.
    """
    found = _of_home_or_none(home)
    if found is None:
        raise NoGateway(
            f"there is no mesh in {home.path}. Start one: millrace up --detach. Or name one "
            f"elsewhere: {BASE_URL_VARIABLE} and {API_KEY_VARIABLE}"
        )
    return found


def _of_home_or_none(home: Home) -> Endpoint | None:
    try:
        state = json.loads(home.state_file.read_text())
        return Endpoint(state["gateway_url"], home.operator_key_file.read_text().strip())
    except FileNotFoundError:
        return None
