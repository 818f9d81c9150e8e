"""``millrace recall``: which versions learnt from a row, and taking them out of service."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from millrace_client.commands import lineage
from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    Json,
    JsonOption,
    LimitOption,
    console,
    created,
    print_json,
    show_list,
    state,
)

app = typer.Typer(help="See what was recalled, what has become of it, and lift it.")
_ACTIONS = ("report", "quarantine", "roll-back")
_OUTCOMES = {
    "reported": "",
    "quarantined": "taken out of service",
    "rolled_back": "does not serve any more",
    "no_successor": "serves on: no version before it is clean",
    "out_already": "was out of service already",
}
_COLUMNS: Columns = {
    "recall": lambda r: r["id"],
    "action": lambda r: r["action"],
    "status": lambda r: r["status"],
    "causes": lambda r: len(r["causes"]),
    "versions": lambda r: len(r["versions"]),
    "live": lambda r: sum(version["live"] for version in r["versions"]),
    "reason": lambda r: r["reason"],
    "created": created,
}


def recall(
    context: typer.Context,
    row: Annotated[
        list[str] | None,
        typer.Option("--row", help="A row as it was uploaded: a JSON object, or a text."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", exists=True, dir_okay=False, help="JSON lines, a row each."),
    ] = None,
    hash: Annotated[
        list[str] | None, typer.Option("--hash", help="sha256:… of a row, as below.")
    ] = None,
    uploaded: Annotated[
        str, typer.Option("--uploaded", help="file-…: all rows of an uploaded file.")
    ] = "",
    action: Annotated[
        str, typer.Option("--action", help="report, quarantine, or roll-back.")
    ] = "report",
    reason: Annotated[str, typer.Option("--reason", help="Kept with the versions.")] = "",
    only_hash: Annotated[
        bool, typer.Option("--only-hash", help="Print what the rows are known by, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find every version that learnt from a row, and take it out of service in one step.

    A row is known by its sha256: of the text's UTF-8 where it is a text, or has one in "text";
    else of its JSON with sorted keys and no spaces (RFC 8785).

    [bold]Example[/bold]

      millrace recall --row '{"text": "…"}' --action quarantine --reason "asked by its author"
      printf %s "$TEXT" | sha256sum
    """
    if action not in _ACTIONS:
        raise typer.BadParameter(f"choose one of {', '.join(_ACTIONS)}", param_hint="--action")
    rows = [*map(_row, row or ()), *(_lines(file) if file else ())]
    if not (rows or hash or uploaded):
        raise typer.BadParameter("give --row, --file, --hash or --uploaded")
    with api(context) as client:
        if only_hash:
            answer = client.request("POST", "/v1/row_hashes", json={"rows": rows})
            console().print("\n".join(answer["hashes"]))
            return
        body: Json = {"rows": rows, "hashes": hash or [], "reason": reason}
        body |= {"action": action.replace("-", "_")} | ({"file": uploaded} if uploaded else {})
        document = client.request("POST", "/v1/recalls", json=body)
    _show(document, as_json)


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List recalls, newest first."""
    with api(context) as client:
        found = client.list("/v1/recalls", limit, {})
    show_list(found, _COLUMNS, as_json=as_json, empty="nothing was recalled yet")


@app.command("show")
def show_(
    context: typer.Context,
    recall: Annotated[str, typer.Argument(metavar="RECALL", help="recall-…")],
    as_json: JsonOption = False,
) -> None:
    """Show a recall, with the versions as they are now."""
    with api(context) as client:
        _show(client.request("GET", f"/v1/recalls/{recall}"), as_json)


@app.command("lift")
def lift(
    context: typer.Context,
    recall: Annotated[str, typer.Argument(metavar="RECALL", help="recall-…")],
    reason: Annotated[str, typer.Option("--reason", help="Kept with the recall.")] = "",
    as_json: JsonOption = False,
) -> None:
    """End a recall. What it alone kept out of service may be rolled out again.

    Nothing serves by itself: roll out what is to serve.

    [bold]Example[/bold]

      millrace recalls lift recall-01J… --reason "the author agrees after all"
      millrace rollouts create demo 7
    """
    with api(context) as client:
        document = client.request("POST", f"/v1/recalls/{recall}/lift", json={"reason": reason})
    _show(document, as_json)


def _row(given: str) -> Any:
    """A JSON object is a row of fields; anything else is a text."""
    try:
        value = json.loads(given)
    except ValueError:
        return given
    return value if isinstance(value, dict) else given


def _lines(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise typer.BadParameter(f"{path}: line {number} is not JSON: {error}") from error
    return rows


def _show(document: Json, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    output = console()
    output.print(tree(document))
    for name in document["unindexed"]:
        output.print(f"{name}: nobody can say whether it holds the rows", style="yellow")


def tree(document: Json) -> Tree:
    """What holds the rows, the versions that learnt from it, and how each was made."""
    result = Tree(Text(f"{document['id']}  {document['action']}", style="bold"))
    if document["status"] == "lifted":
        why = f": {document['lift_reason']}" if document["lift_reason"] else ""
        result.add(Text(f"lifted: keeps nothing out of service any more{why}", style="green"))
    holders = result.add(Text("held by"))
    for cause in document["causes"]:
        label = Text(f"{cause['kind']} ", style="cyan")
        rows = "row" if cause["row_count"] == 1 else "rows"
        label.append(f"{cause['id']}  {cause['row_count']} {rows}")
        if cause["held_out"]:
            label.append("  held out: judged by it, not learnt", style="dim")
        if cause["joined_at"] is not None:
            label.append("  found after the recall was made", style="yellow")
        holders.add(label)
    if not document["causes"]:
        holders.add(Text("nothing that a model learns from", style="green"))
    learnt = result.add(Text("learnt by"))
    for version in document["versions"]:
        learnt.add(_version(version))
    if not document["versions"]:
        learnt.add(Text("no version", style="green"))
    if document["edges"]:
        made = lineage.tree({**document, "id": "by way of"})
        result.children.append(made)
    return result


def _version(version: Json) -> Text:
    label = Text(f"{version['id']}  ")
    label.append_text(state(version["status"]))
    if version["live"]:
        label.append("  LIVE", style="bold red")
    elif version["was_live"]:
        label.append("  was live", style="yellow")
    label.append(f"  {_OUTCOMES.get(version['outcome'], version['outcome'])}", style="dim")
    if version["successor"]:
        label.append(f"  version {version['successor']} serves", style="green")
    return label
