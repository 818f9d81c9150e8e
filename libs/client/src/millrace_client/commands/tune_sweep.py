"""``--sweep`` of ``millrace tune create``, and what it becomes in the request."""

from pathlib import Path
from typing import Annotated

import typer

from millrace_client.api import Json
from millrace_client.commands.tune_options import json_object

_PANEL = "Sweep"
_PARTS = frozenset(("parameters", "metric", "direction", "pruning", "patience"))

SweepOption = Annotated[
    int | None,
    typer.Option(
        "--sweep",
        metavar="N",
        rich_help_panel=_PANEL,
        help="Train N times with other values; keep the best.",
        min=2,
        max=64,
    ),
]
SweepSpaceOption = Annotated[
    Path | None,
    typer.Option(
        "--sweep-space",
        metavar="FILE",
        rich_help_panel=_PANEL,
        help="JSON of what to try, a range by parameter; learning rate and rank when left out.",
        exists=True,
        dir_okay=False,
    ),
]


def sweep_of(trials: int | None, space: Path | None) -> Json | None:
    """The request's ``sweep``; None: there is none.

    The file holds the parameters by name, or all of a sweep but its trials.

    Raises:
        BadParameter: a space without trials, or a file that is not a JSON object.
    """
    if trials is None:
        if space is not None:
            raise typer.BadParameter("needs --sweep N", param_hint="--sweep-space")
        return None
    if space is None:
        return {"trials": trials}
    told = json_object(space, "--sweep-space")
    if "trials" in told:
        raise typer.BadParameter("say the trials as --sweep N", param_hint="--sweep-space")
    whole = told if told.keys() & _PARTS else {"parameters": told}
    return {"trials": trials, **whole}
