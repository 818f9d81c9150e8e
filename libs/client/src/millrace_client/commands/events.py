"""``millrace events``: the facts of the lifecycle."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from millrace_client.connection import api
from millrace_client.output import Json, console

# What a line shows of a fact's data, when it is there: names first, then why, then figures.
_TELLING = (
    "model",
    "from_version",
    "to_version",
    "step",
    "final",
    "traffic_share",
    "train_loss",
    "heldout_loss",
    "checkpoint_to_settled_seconds",
    "reason",
    "tuned_model",
)


# What a fact is about, when not what its name says.
_RESOURCES = ("compression", "version", "checkpoint", "file")


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they happen.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--filter", help="A stage, or a fact (checkpoint.finished); repeatable."),
    ] = None,
    after: Annotated[str, typer.Option("--after", help="Id of the last event known.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One CloudEvent a line, for programs.")
    ] = False,
) -> None:
    """Show every fact since the beginning of history: what became true, and when.

    [bold]Examples[/bold]

      millrace events

      millrace events --follow --filter registry --filter rollout.settled
    """
    with api(context) as client:
        for event in client.events(follow=follow, filters=_filters(only or []), after=after):
            if as_json:
                sys.stdout.write(json.dumps(event) + "\n")
                sys.stdout.flush()
            else:
                console().print(line(event))


def line(event: Json) -> Text:
    """One fact on one line."""
    moment = datetime.fromisoformat(event["time"]).astimezone()
    stage, fact = event["subject"].split(".", 3)[2:]
    data = event["data"]
    result = Text(f"{moment:%H:%M:%S.%f}"[:-3], style="dim")
    result.append(f"  {stage:<10} ", style="cyan")
    result.append(f"{fact:<22}", style="bold")
    result.append(f" {_about(fact, data)}")
    for key, value in _details(data):
        result.append(f"  {key}=", style="dim")
        result.append(_value(value))
    failure = data.get("failure")
    if failure:
        result.append(f"  {failure['reason']}: {failure['message']}", style="red")
    for reason in data.get("verdict", {}).get("reasons", ()):
        result.append(f"  {reason}", style="yellow")
    return result


def _about(fact: str, data: Json) -> str:
    """The id of what the fact is about; a version is best known as ``model@number``."""
    if "number" in data:
        return f"{data['model']}@{data['number']}"
    for key in (fact.split(".")[0], *_RESOURCES):
        if isinstance(data.get(key), str):
            return str(data[key]).rsplit("/", 1)[-1]
    return ""


def _details(data: Json) -> Iterator[tuple[str, object]]:
    checkpoint = data.get("checkpoint")
    flat = {**checkpoint, **data} if isinstance(checkpoint, dict) else data
    for key in _TELLING:
        if flat.get(key) and "number" not in data:
            yield key, flat[key]
    measured = data.get("measurements") or {}
    before, after = measured.get("original_perplexity"), measured.get("artifact_perplexity")
    if before and after:
        yield "perplexity", f"{before:.3f} → {after:.3f}"


def _filters(words: list[str]) -> dict[str, str]:
    """Facts have a dot in them, stages have none."""
    kinds = {
        "stage": ",".join(word for word in words if "." not in word),
        "fact": ",".join(word for word in words if "." in word),
    }
    return {kind: value for kind, value in kinds.items() if value}


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
