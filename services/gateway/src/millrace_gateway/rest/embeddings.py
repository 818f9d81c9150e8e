"""``/v1/embeddings``: said to be missing, in words, until an engine gives them."""

from typing import Annotated, Any

from pydantic import Field

from millrace_gateway import route
from millrace_gateway.rest.caller import CallerOf
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody
from millrace_runtime.errors import InvalidArgument

ROUTER = router("embeddings")


class EmbeddingRequest(RequestBody):
    model: Annotated[str, Field(min_length=1, max_length=300)]
    input: str | list[Any]
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None


@ROUTER.post("/v1/embeddings", include_in_schema=False)
async def create_embedding(body: EmbeddingRequest, caller: CallerOf) -> None:
    """Refused: no model that is served here has an embedding output."""
    found, pinned = caller.gateway.generator.routes.find(caller.tenant, body.model)
    route.candidates(found, pinned)
    raise InvalidArgument(
        f"the model {body.model!r} has no embedding output: it generates text",
        reason="UNSUPPORTED_MODEL",
        field="model",
    )
