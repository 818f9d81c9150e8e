"""``millrace doctor``: what is wrong with the mesh on this machine, and what to do."""

import typer
from rich.text import Text

from millrace_client.commands import local
from millrace_client.connection import connection
from millrace_client.errors import MeshNotInstalled
from millrace_client.output import JsonOption, console, print_json


def doctor(context: typer.Context, as_json: JsonOption = False) -> None:
    """Check processes, streams, dead letters, outboxes, work, models and disk; say what to do.

    Exit status 1 when something is wrong.
    """
    try:
        from millrace_mesh import diagnosis
    except ImportError as error:
        raise MeshNotInstalled from error
    home = connection(context).home
    running = local.find(home)
    findings = diagnosis.examine(None if running is None else running.state, home)
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            mark = Text("✓ ", style="green") if finding.is_good else Text("✗ ", style="bold red")
            mark.append(f"{finding.subject:<18}", style="bold")
            mark.append(finding.detail, style="default")
            console().print(mark)
            if finding.remedy:
                console().print(Text(f"  → {finding.remedy}", style="yellow"))
    if not all(finding.is_good for finding in findings):
        raise typer.Exit(1)
