"""``millrace keys``: who may call."""

from enum import StrEnum
from typing import Annotated

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

app = typer.Typer(help="Make and revoke API keys (with an operator's key).")


class Role(StrEnum):
    """What a key may do."""

    MEMBER = "member"
    OPERATOR = "operator"


_COLUMNS: Columns = {
    "key": lambda k: k["id"],
    "tenant": lambda k: k["tenant"],
    "name": lambda k: k.get("display_name"),
    "role": lambda k: k["role"],
    "state": lambda k: "revoked" if k.get("revoked_at") else "good",
    "created": created,
}
TenantOption = Annotated[str, typer.Option("--tenant", help="Your own when left out.")]


@app.command()
def create(
    context: typer.Context,
    tenant: TenantOption = "",
    name: Annotated[str, typer.Option("--name", help="For people.")] = "",
    role: Annotated[Role, typer.Option("--role")] = Role.MEMBER,
    as_json: JsonOption = False,
) -> None:
    """Make a key. Its secret is shown this once. A tenant is made by its first key.

    [bold]Example[/bold]

      millrace keys create --tenant acme --name ci
    """
    body = {"display_name": name, "role": role.value, **({"tenant": tenant} if tenant else {})}
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
