"""``millrace lineage``: what something came from, and led to."""

from collections import defaultdict
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from millrace_client.connection import api
from millrace_client.output import Json, JsonOption, console, print_json

_DIGEST_SHOWN = len("sha256:") + 12


def lineage(
    context: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(metavar="ID", help="demo@3, run-…, dataset-…, file-…, or sha256:…"),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a version, artifact, checkpoint, run, dataset or file came from and led to.

    [bold]Example[/bold]

      millrace lineage demo@3
    """
    with api(context) as client:
        document = client.lineage(reference)
    if as_json:
        print_json(document)
    else:
        console().print(tree(document))


def tree(document: Json) -> Tree:
    """Causes above their effects. What has several causes stands under each of them."""
    nodes = {node["id"]: node for node in document["nodes"]}
    effects: dict[str, list[str]] = defaultdict(list)
    for edge in document["edges"]:
        effects[edge["cause"]].append(edge["effect"])
    caused = {edge["effect"] for edge in document["edges"]}
    result = Tree(Text(document["id"], style="bold"))
    for root in nodes:
        if root not in caused:
            _grow(result, root, nodes, effects)
    return result


def _grow(branch: Tree, node: str, nodes: dict[str, Json], effects: dict[str, list[str]]) -> None:
    described = nodes.get(node, {"id": node, "kind": "?", "digest": None})
    label = Text(f"{described['kind']} ", style="cyan")
    label.append(described["id"])
    if described["digest"]:
        label.append(f"  {described['digest'][:_DIGEST_SHOWN]}", style="dim")
    grown = branch.add(label)
    for effect in effects[node]:
        _grow(grown, effect, nodes, effects)
