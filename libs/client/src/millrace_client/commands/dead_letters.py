"""``millrace dead-letters``: facts that a stage could not handle."""

from typing import Annotated

import typer

from millrace_client.api import Millrace
from millrace_client.connection import api
from millrace_client.errors import NotFound
from millrace_client.output import (
    Columns,
    Json,
    JsonOption,
    LimitOption,
    console,
    created,
    print_json,
    show,
    show_list,
    state,
)

app = typer.Typer(help="See, replay or give up facts that a stage could not handle.")

_COLUMNS: Columns = {
    "letter": lambda d: d["id"],
    "refused by": lambda d: d["consumer"],
    "fact": lambda d: d["fact"],
    "state": lambda d: state(d["status"]),
    "why": lambda d: f"{d['error']['code']}: {d['error']['message']}",
    "tries": lambda d: d["deliveries"],
    "refused": created,
}
LetterArgument = Annotated[str, typer.Argument(metavar="LETTER", help="letter-…")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Your own when left out.")]


@app.command("list")
def list_(
    context: typer.Context,
    tenant: TenantOption = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, refused last first."""
    with api(context) as client:
        found = client.dead_letters.list(limit, **_query(tenant))
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no dead letters")


@app.command("show")
def show_(
    context: typer.Context,
    letter: LetterArgument,
    tenant: TenantOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show one: what was refused, by whom, and why."""
    with api(context) as client:
        show(_call(client, "GET", letter, tenant), as_json=as_json)


@app.command()
def replay(
    context: typer.Context,
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="letter-…")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All that there are now.")] = False,
    tenant: TenantOption = "",
    as_json: JsonOption = False,
) -> None:
    """Deliver a fact again to the stage that refused it, once what was wrong is put right.

    The letter goes when the stage has handled it; else it stays, with the new reason.

    [bold]Examples[/bold]

      millrace dead-letters replay letter-5b1f0c…

      millrace dead-letters replay --all
    """
    if bool(letter) == everything:
        raise typer.BadParameter("name one letter, or say --all", param_hint="LETTER")
    with api(context) as client:
        if not everything:
            show(_call(client, "POST", letter, tenant, "/replay"), as_json=as_json)
            return
        letters = client.dead_letters.list(None, **_query(tenant))
        replayed = [_replay_if_there(client, each["id"], tenant) for each in letters]
    found = [each for each in replayed if each is not None]
    if as_json:
        print_json(found)
    else:
        console().print(f"{len(found)} on their way back; see: millrace dead-letters list")


@app.command()
def delete(
    context: typer.Context,
    letter: LetterArgument,
    tenant: TenantOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give a fact up: its stage will never handle it. It stays in the history."""
    with api(context) as client:
        show(_call(client, "DELETE", letter, tenant), as_json=as_json)


def _replay_if_there(client: Millrace, letter: str, tenant: str) -> Json | None:
    """None when the letter has gone since it was listed: nothing is left to be done."""
    try:
        return _call(client, "POST", letter, tenant, "/replay")
    except NotFound:
        return None


def _call(client: Millrace, method: str, letter: str, tenant: str, verb: str = "") -> Json:
    path = f"/v1/dead_letters/{letter}{verb}"
    return client.request(method, path, params=_query(tenant))


def _query(tenant: str) -> dict[str, str]:
    return {"tenant": tenant} if tenant else {}
