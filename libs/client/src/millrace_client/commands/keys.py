"""``millrace keys``: who may call, and how much."""

from enum import StrEnum
from typing import Annotated, Any

import typer

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
)

app = typer.Typer(help="Make, limit and revoke API keys (with an operator's key).")


class Role(StrEnum):
    """What a key may do."""

    MEMBER = "member"
    OPERATOR = "operator"


class Priority(StrEnum):
    """Who goes first when engines are busy."""

    HIGH = "high"
    DEFAULT = "default"
    LOW = "low"


_COLUMNS: Columns = {
    "key": lambda k: k["id"],
    "tenant": lambda k: k["tenant"],
    "name": lambda k: k.get("display_name"),
    "role": lambda k: k["role"],
    "state": lambda k: "revoked" if k.get("revoked_at") else "good",
    "limits": lambda k: _limits(k),
    "created": created,
}
TenantOption = Annotated[str, typer.Option("--tenant", help="Your own when left out.")]
_NONE = "0: no limit of its own."
RequestsOption = Annotated[
    int | None, typer.Option("--requests-per-minute", min=0, help=f"Generations begun. {_NONE}")
]
TokensOption = Annotated[
    int | None,
    typer.Option("--tokens-per-minute", min=0, help=f"Of prompts and answers. {_NONE}"),
]
ConcurrentOption = Annotated[
    int | None, typer.Option("--concurrent", min=0, help=f"Generations in progress. {_NONE}")
]
PriorityOption = Annotated[
    Priority | None, typer.Option("--priority", help="Of requests that ask for no other.")
]


@app.command()
def create(
    context: typer.Context,
    tenant: TenantOption = "",
    name: Annotated[str, typer.Option("--name", help="For people.")] = "",
    role: Annotated[Role, typer.Option("--role")] = Role.MEMBER,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    concurrent: ConcurrentOption = None,
    priority: PriorityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. Its secret is shown this once. A tenant is made by its first key.

    [bold]Example[/bold]

      millrace keys create --tenant acme --name ci --requests-per-minute 60
    """
    body = {"display_name": name, "role": role.value, **({"tenant": tenant} if tenant else {})}
    body |= _given(requests_per_minute, tokens_per_minute, concurrent, priority)
    with api(context) as client:
        key = client.keys.create(body)
    if as_json:
        print_json(key)
        return
    console().print(f"{key['id']}  {key['role']} of {key['tenant']}")
    print(key["secret"])
    console().print("Keep it: it is not shown again.", style="yellow")


@app.command("list")
def list_(
    context: typer.Context,
    tenant: TenantOption = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List keys, revoked ones too; never their secrets."""
    with api(context) as client:
        found = client.keys.list(limit, **({"tenant": tenant} if tenant else {}))
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no keys")


@app.command()
def update(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="key-…")],
    tenant: TenantOption = "",
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    concurrent: ConcurrentOption = None,
    priority: PriorityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a key's limits, everywhere within a second. What is left out stays.

    [bold]Example[/bold]

      millrace keys update key-… --tokens-per-minute 100000 --priority low
    """
    body = _given(requests_per_minute, tokens_per_minute, concurrent, priority)
    with api(context) as client:
        query = {"tenant": tenant} if tenant else {}
        changed = client.request("PATCH", f"/v1/keys/{key}", json=body, params=query)
        show(changed, as_json=as_json)


@app.command()
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="key-…")],
    tenant: TenantOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a key worthless, everywhere within a second."""
    with api(context) as client:
        query = {"tenant": tenant} if tenant else {}
        show(client.request("DELETE", f"/v1/keys/{key}", params=query), as_json=as_json)


def _given(
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent: int | None,
    priority: Priority | None,
) -> dict[str, Any]:
    """The limits that were given, as the API has them: 0 is null."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_generations": concurrent,
    }
    body: dict[str, Any] = {
        name: limit or None for name, limit in limits.items() if limit is not None
    }
    return {**body, "priority": priority.value} if priority else body


def _limits(key: dict[str, Any]) -> str:
    """A key's limits in one cell: ``60 req/min, 2 at once, low``."""
    units = {
        "requests_per_minute": "req/min",
        "tokens_per_minute": "tok/min",
        "concurrent_generations": "at once",
    }
    words = [f"{key[name]} {unit}" for name, unit in units.items() if key.get(name)]
    if key.get("priority", "default") != "default":
        words.append(key["priority"])
    return ", ".join(words)
