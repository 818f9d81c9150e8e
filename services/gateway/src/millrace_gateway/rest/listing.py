"""Lists as the OpenAI API has them: ``after`` and ``limit`` in, ``has_more`` out."""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel

from millrace_runtime import paging

LARGEST_PAGE = 1000

Item = TypeVar("Item")

After = Annotated[
    str | None,
    Query(
        max_length=400, pattern=r"^[!-~]*$", description="Id of the last item of the page before."
    ),
]
Limit = Annotated[int, Query(ge=1, le=10_000, description="How many items at most.")]


class ListObject(BaseModel, Generic[Item]):
    """A page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


def page_of(items: Sequence[Any], has_more: bool) -> dict[str, Any]:
    """The page that holds ``items``, which have ids."""
    return {
        "data": items,
        "has_more": has_more,
        "first_id": items[0].id if items else None,
        "last_id": items[-1].id if items else None,
    }


def token_after(identifier: str | None) -> str:
    """The services' page token for what follows ``identifier`` (``millrace_runtime.paging``)."""
    return paging.encode_token(identifier) if identifier else ""


def page_size(limit: int) -> int:
    """What to ask a service for; it gives 1000 at most, and ``has_more`` then says so."""
    return min(limit, LARGEST_PAGE)
