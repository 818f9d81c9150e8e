"""The beginning and the end of an engine's answer."""

from collections.abc import AsyncIterator, Awaitable, Callable

from millrace_gateway.triton import Delta, EngineFailed


async def first_of(deltas: AsyncIterator[Delta]) -> Delta:
    """The first delta; the iterator is closed when there is none.

    Raises:
        EngineFailed: the stream failed, or ended, before it began.
    """
    try:
        first = await anext(deltas, None)
        if first is None:
            raise EngineFailed("the engine's stream ended before it began")
        return first
    except BaseException:
        await close(deltas)
        raise


async def close(iterator: AsyncIterator[Delta]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
