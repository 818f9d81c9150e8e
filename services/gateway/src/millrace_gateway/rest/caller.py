"""What every handler is given: who calls, and what the gateway is made of."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fastapi import Depends, Header, Request

from millrace_gateway.app import KeyRing, Keys
from millrace_gateway.batches.app import Batches
from millrace_gateway.domain import Principal
from millrace_gateway.generation import Generator
from millrace_gateway.history import Position, Record, Selection
from millrace_gateway.inference import Inference
from millrace_gateway.letters import Letters
from millrace_gateway.permissions import Permissions
from millrace_gateway.rest.prompt_versions import PromptVersions
from millrace_gateway.tokenizer import Tokenizers
from millrace_gateway.tracking import Tracking
from millrace_gateway.upstream import Upstream
from millrace_gateway.webhooks.app import Webhooks
from millrace_runtime import names
from millrace_runtime.content import ContentStore
from millrace_runtime.errors import NotFound

_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_MODEL = re.compile(r"[A-Za-z0-9._:-]{1,256}")


class Replay(Protocol):
    """The history of facts; ``history.History`` is one."""

    def read(
        self, selection: Selection, after: Position | None, follow: bool
    ) -> AsyncIterator[Record | None]: ...


@dataclass
class Gateway:
    """All that the REST API is made of.

    Attributes:
        is_ready: whether the gateway may be sent requests; called in a thread.
        measure: brings the metrics up to date before they are read; called in a thread.
        draining: set when the gateway stops; endless streams then end, and connections are
            not kept alive.
    """

    upstream: Upstream
    keys: Keys
    key_ring: KeyRing
    generator: Generator
    inference: Inference
    tokenizers: Tokenizers
    history: Replay
    letters: Letters
    batches: Batches
    webhooks: Webhooks
    permissions: Permissions
    prompts: PromptVersions
    tracking: Tracking
    content: ContentStore
    is_ready: Callable[[], bool]
    measure: Callable[[], None]
    maximum_body_bytes: int
    maximum_file_bytes: int
    draining: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Caller:
    """Who is calling, and what serves them. Names can only be made in the caller's tenant."""

    principal: Principal
    gateway: Gateway
    request_id: str

    @property
    def tenant(self) -> str:
        return self.principal.tenant

    @property
    def upstream(self) -> Upstream:
        return self.gateway.upstream

    @property
    def parent(self) -> str:
        return f"tenants/{self.tenant}"

    def name(self, collection: str, identifier: str, what: str) -> str:
        """The name of a resource in the caller's tenant.

        Raises:
            NotFound: nothing can have such an id.
        """
        if not _ID.fullmatch(identifier):
            raise no_such(what, identifier)
        return f"{self.parent}/{collection}/{identifier}"

    def model_name(self, model: str) -> str:
        """The name of a model in the caller's tenant.

        Raises:
            NotFound: nothing can have such an id.
        """
        if not _MODEL.fullmatch(model):
            raise no_such("model", model)
        return f"{self.parent}/models/{model}"

    def relative(self, name: str) -> str:
        """A resource's name without the caller's tenant: ``runs/run-…/checkpoints/ckpt-…``."""
        return name.removeprefix(f"{self.parent}/")


def no_such(what: str, identifier: str) -> NotFound:
    return NotFound(f"No such {what}: {identifier!r}", field="")


async def _caller(
    request: Request,
    idempotency_key: Annotated[
        str,
        Header(
            max_length=128,
            description="Sent twice with the same content, a request is carried out once.",
        ),
    ] = "",
) -> Caller:
    # With an id of its own even a request that named none can be passed on twice, and is
    # carried out once: a service may be restarted between the two.
    request_id = idempotency_key or names.new_id("request")
    return Caller(request.state.principal, request.app.state.gateway, request_id)


CallerOf = Annotated[Caller, Depends(_caller)]
