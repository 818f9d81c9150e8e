"""Several completions that answer one request: begun together, read as they come, ended together.

All come from one version, so that the answer as a whole can name it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from millrace_gateway.generation import Generation, Generator, Request
from millrace_gateway.route import Route, Target
from millrace_gateway.triton import Delta, joined
from millrace_runtime.errors import NotFound, Unavailable

_REPLACED = "VERSION_REPLACED"


@dataclass
class Bundle:
    """Completions by index; the first has begun. Close it, or read it to its end.

    Attributes:
        repeats: how many of them, one after the other, have the same prompt.
        _others: those after the first. When engines are busy they wait for their places while
            the first is read: waiting for all before any is read could be for ever.
    """

    first: Generation
    _others: Sequence[asyncio.Task[Generation]] = ()
    repeats: int = 1
    _begun: dict[int, Generation] = field(default_factory=dict)
    _iterators: dict[int, AsyncGenerator[Delta, None]] = field(default_factory=dict)
    _asked: dict[asyncio.Task[Delta | None], int] = field(default_factory=dict)
    _closing: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._begun[0] = self.first

    def __len__(self) -> int:
        return 1 + len(self._others)

    @property
    def id(self) -> str:
        return self.first.request.id

    @property
    def route(self) -> Route:
        return self.first.route

    @property
    def target(self) -> Target:
        return self.first.target

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many answers it has."""
        return sum(
            one.prompt_tokens for index, one in self._begun.items() if index % self.repeats == 0
        )

    @property
    def completion_tokens(self) -> int:
        return sum(one.completion_tokens for one in self._begun.values())

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """The answers as they come, each delta with the index of its completion.

        Raises:
            MillraceError: one could not begin, or the engine broke it off; all are closed.
        """
        if not self._others:  # without a task for each delta
            async for delta in self.first.deltas():
                yield 0, delta
            return
        try:
            for index in range(len(self)):
                self._ask(index)
            while self._asked:
                done, _ = await asyncio.wait(self._asked, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=self._asked.__getitem__):
                    index = self._asked.pop(task)
                    if (answer := task.result()) is not None:
                        yield index, answer
                        self._ask(index)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop what still runs, and what waits to. Closing twice is as once.

        It is done to the end, also when whoever waits for it is cancelled.
        """
        if not self._others:
            await self.first.close()
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for task in (*self._asked, *self._others):
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
        begun = await asyncio.gather(*self._others, return_exceptions=True)
        for iterator in self._iterators.values():
            await iterator.aclose()
        for generation in (self.first, *begun):
            if isinstance(generation, Generation):
                await generation.close()

    def _ask(self, index: int) -> None:
        if self._closing is None:
            self._asked[asyncio.ensure_future(self._next(index))] = index

    async def _next(self, index: int) -> Delta | None:
        if index not in self._begun:
            self._begun[index] = await self._others[index - 1]
        if index not in self._iterators:
            deltas = self._begun[index].deltas()
            self._iterators[index] = cast(AsyncGenerator[Delta, None], deltas)
        return await anext(self._iterators[index], None)


async def start(generator: Generator, requests: Sequence[Request], repeats: int = 1) -> Bundle:
    """Begin all ``requests``, of one model, with the version that is chosen for the first.

    When that version was unloaded before the others could begin, all are begun once more.

    Raises:
        MillraceError: the first cannot begin, or another is refused at once.
    """
    try:
        return await _start(generator, requests, repeats)
    except Unavailable as error:
        if error.reason != _REPLACED:
            raise
        return await _start(generator, requests, repeats)


async def collect(bundle: Bundle) -> list[Delta]:
    """The whole answers, by index.

    Raises:
        MillraceError: one could not begin, or the engine broke it off.
    """
    parts: list[list[Delta]] = [[] for _ in range(len(bundle))]
    async for index, delta in bundle.deltas():
        parts[index].append(delta)
    return [joined(deltas) for deltas in parts]


async def _start(generator: Generator, requests: Sequence[Request], repeats: int) -> Bundle:
    first = await generator.start(requests[0])
    version = f"{first.route.model}@{first.target.version}"
    others = [
        asyncio.ensure_future(_begin(generator, _part(request, version)))
        for request in requests[1:]
    ]
    bundle = Bundle(first, others, repeats)
    try:
        if others:
            await asyncio.sleep(0)  # what is refused at once is refused before any answer begins
        for task in others:
            if task.done():
                task.result()
    except BaseException:
        await bundle.close()
        raise
    return bundle


def _part(request: Request, version: str) -> Request:
    """One more answer to a request whose first has begun."""
    return replace(request, model=version, is_part=True, deadline=request.deadline.of_part())


async def _begin(generator: Generator, request: Request) -> Generation:
    try:
        return await generator.start(request)
    except NotFound as error:
        raise Unavailable(
            "the version was replaced before all choices had begun; send the request again",
            reason=_REPLACED,
        ) from error
