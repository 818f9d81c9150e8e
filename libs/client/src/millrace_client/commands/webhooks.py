"""``millrace webhooks``: have what happens posted to a URL of yours, signed."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from millrace_client import text
from millrace_client.api import Json
from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    JsonOption,
    LimitOption,
    console,
    created,
    print_json,
    show,
    show_list,
    state,
)

app = typer.Typer(help="Have what happens posted to a URL of yours, signed, until it is taken.")


class Status(StrEnum):
    """What may have become of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


_COLUMNS: Columns = {
    "webhook": lambda w: w["id"],
    "name": lambda w: w["name"],
    "url": lambda w: w["url"],
    "events": lambda w: ", ".join(w["event_types"]),
    "state": lambda w: "enabled" if w["enabled"] else f"disabled: {w['disabled_reason']}",
    "created": created,
}
_DELIVERY_COLUMNS: Columns = {
    "delivery": lambda d: d["id"],
    "event": lambda d: d["event_type"],
    "state": lambda d: state(d["status"]),
    "attempts": lambda d: len(d["attempts"]),
    "last": lambda d: _last(d),
    "next": lambda d: text.clock(d["next_attempt_at"]) if d.get("next_attempt_at") else None,
    "created": created,
}
WebhookArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="whe-…")]
DeliveryArgument = Annotated[str, typer.Argument(metavar="DELIVERY", help="whd-…")]
EventOption = Annotated[
    list[str] | None,
    typer.Option(
        "--event", "-e", metavar="TYPE", help="Again for more; 'batch.*' and '*' mean several."
    ),
]


@app.command()
def create(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="https://…")],
    event: EventOption = None,
    name: Annotated[str, typer.Option("--name", help="For people; else the URL.")] = "",
    request_id: Annotated[str, typer.Option("--request-id", help="Same id, same webhook.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Have events posted from now on; without --event, all. The secret is shown this once.

    [bold]Example[/bold]

      millrace webhooks create https://example.com/hook -e 'fine_tuning.job.*' -e batch.completed
    """
    body = {"name": name or url[:256], "url": url, "event_types": event or ["*"]}
    with api(context) as client:
        _show_secret(client.webhooks.create(body, request_id=request_id), as_json)


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List webhooks, newest first."""
    with api(context) as client:
        found = client.webhooks.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no webhooks yet")


@app.command("show")
def show_(context: typer.Context, webhook: WebhookArgument, as_json: JsonOption = False) -> None:
    """Show one webhook: what it is for, and why it is disabled if it is."""
    with api(context) as client:
        show(client.webhooks.get(webhook), as_json=as_json)


@app.command()
def update(
    context: typer.Context,
    webhook: WebhookArgument,
    url: Annotated[str, typer.Option("--url")] = "",
    event: EventOption = None,
    name: Annotated[str, typer.Option("--name")] = "",
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Disabled, what is pending is given up."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Change a webhook. What is left out stays; events that are given replace all others.

    [bold]Example[/bold]

      millrace webhooks update whe-… --enable
    """
    given: dict[str, Any] = {"url": url, "event_types": event, "name": name}
    body = {key: value for key, value in given.items() if value}
    if enabled is not None:
        body["enabled"] = enabled
    if not body:
        raise typer.BadParameter("say what to change: --url, --event, --name, --enable, --disable")
    with api(context) as client:
        path = f"/v1/webhook_endpoints/{webhook}"
        show(client.request("POST", path, json=body), as_json=as_json)


@app.command()
def delete(context: typer.Context, webhook: WebhookArgument, as_json: JsonOption = False) -> None:
    """Post nothing any more, and forget what was posted."""
    with api(context) as client:
        show(client.webhooks.delete(webhook), as_json=as_json)


@app.command()
def rotate(
    context: typer.Context,
    webhook: WebhookArgument,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="The old secret stays good for 24 hours.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign with another secret. It is shown this once."""
    with api(context) as client:
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        _show_secret(client.webhooks.act(webhook, "rotate_secret", body), as_json)


@app.command("test")
def try_(
    context: typer.Context,
    webhook: WebhookArgument,
    event: Annotated[str, typer.Option("--event", "-e", metavar="TYPE")] = (
        "fine_tuning.job.succeeded"
    ),
    as_json: JsonOption = False,
) -> None:
    """Post a sample event now, and say how it was answered. Exit status 1 if not with a 2xx."""
    with api(context) as client:
        told = client.webhooks.act(webhook, "test", {"event_type": event})
    show(told, as_json=as_json)
    if not 200 <= told["status_code"] < 300:
        raise typer.Exit(1)


@app.command()
def types(context: typer.Context, as_json: JsonOption = False) -> None:
    """List every type of event that can be posted."""
    with api(context) as client:
        found = client.request("GET", "/v1/webhook_event_types")["data"]
    if as_json:
        print_json(found)
    else:
        console().print("\n".join(found))


@app.command()
def deliveries(
    context: typer.Context,
    webhook: WebhookArgument,
    delivery: Annotated[
        str, typer.Argument(metavar="[DELIVERY]", help="whd-…: all of this one.")
    ] = "",
    status: Annotated[Status | None, typer.Option("--status", help="Only those.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List what was and is to be posted, newest first; of one delivery, every attempt.

    [bold]Example[/bold]

      millrace webhooks deliveries whe-… --status failed
    """
    path = f"/v1/webhook_endpoints/{webhook}/deliveries"
    with api(context) as client:
        if delivery:
            show(client.request("GET", f"{path}/{delivery}"), as_json=as_json)
            return
        found = client.list(path, limit, {"status": status.value} if status else {})
    empty = "there are no deliveries yet"
    show_list(found, _DELIVERY_COLUMNS, as_json=as_json, empty=empty)


@app.command()
def redeliver(
    context: typer.Context,
    webhook: WebhookArgument,
    delivery: DeliveryArgument,
    as_json: JsonOption = False,
) -> None:
    """Post an event again, at once, with the same webhook-id."""
    with api(context) as client:
        path = f"/v1/webhook_endpoints/{webhook}/deliveries/{delivery}/redeliver"
        show(client.request("POST", path, json={}), as_json=as_json)


def _show_secret(webhook: Json, as_json: bool) -> None:
    if as_json:
        print_json(webhook)
        return
    console().print(f"{webhook['id']}  {webhook['url']}  {', '.join(webhook['event_types'])}")
    print(webhook["signing_secret"])
    console().print("Keep it (OPENAI_WEBHOOK_SECRET): it is not shown again.", style="yellow")


def _last(delivery: Json) -> object:
    """How the last attempt went, in a word or two."""
    if not delivery["attempts"]:
        return None
    attempt = delivery["attempts"][-1]
    return attempt["status_code"] or attempt["error"]
