"""``millrace chat | complete``: talk to what is served."""

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from millrace_client.api import Json, Millrace
from millrace_client.connection import api
from millrace_client.errors import ApiError, MillraceError
from millrace_client.output import console

ModelArgument = Annotated[
    str, typer.Argument(help="demo, demo@3 or ft:…; the newest one when left out.")
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", "-t", min=0, max=2)]
TopPOption = Annotated[float, typer.Option("--top-p", min=0, max=1)]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Same seed, same answer.")]


class NothingServed(MillraceError):
    def __init__(self) -> None:
        super().__init__("nothing is served yet; see: millrace runs list, millrace rollouts list")


def chat(
    context: typer.Context,
    model: ModelArgument = "",
    message: Annotated[
        str, typer.Option("--message", "-m", help="Ask this and end; - reads standard input.")
    ] = "",
    system: Annotated[str, typer.Option("--system", "-s", help="The first message.")] = "",
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
) -> None:
    """Chat with a model; answers are shown as they come.

    [bold]Examples[/bold]

      millrace chat                                 # the newest model, until Ctrl-D

      millrace chat demo@2 -m "def mean(values):"
    """
    with api(context) as client:
        options = _options(model or newest_model(client), max_tokens, temperature, top_p, seed)
        history = [{"role": "system", "content": system}] if system else []
        if message:
            asked = sys.stdin.read() if message == "-" else message
            _answer(client, options, [*history, {"role": "user", "content": asked}])
            return
        console().print(f"[dim]{options['model']}; /new forgets, Ctrl-D ends[/]")
        _converse(client, options, history)


def complete(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Text to go on from; - reads standard input.")],
    model: Annotated[str, typer.Option("--model", "-M", help="The newest when left out.")] = "",
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
) -> None:
    """Let a model go on from a text.

    [bold]Example[/bold]

      millrace complete "import os\\n\\ndef walk(" --model demo --temperature 0
    """
    with api(context) as client:
        options = _options(model or newest_model(client), max_tokens, temperature, top_p, seed)
        given = sys.stdin.read() if prompt == "-" else prompt
        chunks = client.stream_text({**options, "prompt": given})
        _show(choice.get("text") or "" for choice in _choices(chunks))


def newest_model(client: Millrace) -> str:
    """Id of the newest model that is served.

    Raises:
        NothingServed: there is none.
    """
    models = client.models.list()
    if not models:
        raise NothingServed
    return str(max(models, key=lambda model: model.get("created", 0))["id"])


def _options(
    model: str, max_tokens: int, temperature: float, top_p: float, seed: int | None
) -> Json:
    options: Json = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
    }
    return options if seed is None else {**options, "seed": seed}


def _converse(client: Millrace, options: Json, history: list[Json]) -> None:
    beginning = list(history)
    while True:
        try:
            asked = input("> ").strip()
        except EOFError:
            print()
            return
        if asked == "/new":
            history = list(beginning)
        elif asked:
            question = {"role": "user", "content": asked}
            try:
                answer = _answer(client, options, [*history, question])
            except ApiError as error:
                console().print(f"[red]{type(error).__name__}:[/]", str(error))
                continue
            history += [question, {"role": "assistant", "content": answer}]


def _answer(client: Millrace, options: Json, messages: list[Json]) -> str:
    chunks = client.stream_chat({**options, "messages": messages})
    return _show(choice["delta"].get("content") or "" for choice in _choices(chunks))


def _choices(chunks: Iterable[Json]) -> Iterator[Json]:
    for chunk in chunks:
        yield from chunk["choices"]


def _show(pieces: Iterable[str]) -> str:
    """Print pieces as they come, and return them whole."""
    whole = ""
    for piece in pieces:
        whole += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return whole
