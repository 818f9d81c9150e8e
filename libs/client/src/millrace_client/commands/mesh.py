"""``millrace up | down | restart | status | env | logs``: the mesh on this machine."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from millrace_client import text
from millrace_client.commands import local
from millrace_client.commands.local import MeshError
from millrace_client.connection import connection
from millrace_client.endpoint import of_home
from millrace_client.output import Columns, Json, JsonOption, console, print_json, state, table

if TYPE_CHECKING:
    from millrace_mesh.control import Running
    from millrace_mesh.layout import Layout

_FOLLOW_SECONDS = 0.2
_COLUMNS: Columns = {
    "process": lambda p: p["name"],
    "state": lambda p: state(p["phase"]),
    "pid": lambda p: p["pid"],
    "address": lambda p: p["address"],
    "ready for": lambda p: text.duration(time.time() - p["ready_at"]) if p["ready_at"] else "-",
    "restarts": lambda p: p["restarts"],
    "last end": lambda p: p["last_end"],
}


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is ready; it runs on.")
    ] = False,
) -> None:
    """Run the mesh: NATS, Triton and six services, under one supervisor.

    In the foreground it shows one log of all, until Ctrl-C. State is kept in $MILLRACE_HOME
    (default ./.millrace); ports follow from $MILLRACE_BASE_PORT (default 8080).

    [bold]Examples[/bold]

      millrace up --detach

      MILLRACE_HOME=/tmp/second MILLRACE_BASE_PORT=8180 millrace up    # a second one beside it
    """
    layout = local.layout()
    if detach:
        _up_detached(layout)
        return
    from millrace_mesh import supervisor
    from millrace_mesh.layout import LayoutError
    from millrace_mesh.nats import NotDurable
    from millrace_mesh.state import AlreadyRunning

    try:
        supervisor.run(layout)
    except (AlreadyRunning, LayoutError, NotDurable, FileNotFoundError) as error:
        raise MeshError(f"{error}. See: millrace status, millrace down") from error


def _up_detached(layout: "Layout") -> None:
    from millrace_mesh import control
    from millrace_mesh.layout import LayoutError

    running = control.find(layout.home)
    out = console()
    try:
        with out.status("starting the mesh") as spinner:

            def show(known: "Running") -> None:
                waiting = [p["name"] for p in known.state.get("processes", ()) if not p["ready_at"]]
                spinner.update(f"starting the mesh: waiting for {', '.join(waiting)}")

            if running is not None:
                control.wait_until_ready(layout.home, on_wait=show)
                out.print(f"a mesh already runs in {layout.home.path} (pid {running.pid})")
                return
            running = control.start_detached(layout, show)
    except (control.StartFailed, LayoutError) as error:
        raise MeshError(f"the mesh did not start: {error}") from error
    seconds = running.state["ready_at"] - running.state["started_at"]
    out.print(f"the mesh is ready after {text.duration(seconds)}: {running.state['gateway_url']}")
    out.print('next: eval "$(millrace env)"; millrace --help; millrace down to stop')


def down(context: typer.Context) -> None:
    """Stop the mesh of $MILLRACE_HOME, wherever it was started from."""
    home = connection(context).home
    running = local.find(home)
    if running is None:
        console().print(f"no mesh runs in {home.path}")
        return
    from millrace_mesh import control

    with console().status("stopping the mesh"):
        control.stop(home)
    console().print(f"the mesh in {home.path} has stopped")


def restart(
    context: typer.Context,
    services: Annotated[
        list[str] | None,
        typer.Argument(help="data, trainer, tuner, …; all six when left out."),
    ] = None,
) -> None:
    """Restart services one after the other, without a request failing.

    Of each, the new process must be ready before the old one drains and ends. Work in hand goes
    over to the new one; streams that outlive the drain end with an error.

    [bold]Examples[/bold]

      millrace restart            # all, as after an upgrade

      millrace restart gateway
    """
    home = connection(context).home
    local.find(home)
    from millrace_mesh import control
    from millrace_mesh.layout import SERVICES

    out = console()
    try:
        with out.status("restarting") as spinner:
            drained = control.restart(
                home,
                services or SERVICES,
                lambda known: spinner.update(f"restarting {known['current']}"),
            )
    except control.RestartFailed as error:
        raise MeshError(f"{error}. See: millrace logs") from error
    for service, seconds in drained.items():
        out.print(f"{service} was restarted; the old one drained in {text.duration(seconds)}")


def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """Say what runs. Exit status 0 when the whole mesh is ready, 3 when it is not."""
    home = connection(context).home
    running = local.find(home)
    document: Json = running.state if running is not None else {"phase": "stopped"}
    if as_json:
        print_json({"home": str(home.path), **document})
    else:
        _show_status(home.path, document)
    if document.get("phase") != "ready" or any(
        process["phase"] != "ready" for process in document.get("processes", ())
    ):
        raise typer.Exit(3)


def _show_status(home: Path, document: Json) -> None:
    out = console()
    if not document.get("processes"):
        out.print(f"no mesh runs in {home}. Start one: millrace up --detach")
        return
    out.print("mesh ", state(document["phase"]), f" in {home} (pid {document['pid']})", sep="")
    out.print(f"REST {document['gateway_url']}/v1   gRPC {document['gateway_grpc']}")
    if document["durability"]:
        out.print(document["durability"])
    out.print(table(document["processes"], _COLUMNS))


def env(context: typer.Context) -> None:
    """Print export lines for OPENAI_BASE_URL and OPENAI_API_KEY.

    [bold]Example[/bold]

      eval "$(millrace env)" && python -c "import openai; print(openai.OpenAI().models.list())"
    """
    endpoint = of_home(connection(context).home)
    print(f"export OPENAI_BASE_URL={shlex.quote(endpoint.openai_base_url)}")
    print(f"export OPENAI_API_KEY={shlex.quote(endpoint.api_key)}")


def logs(
    context: typer.Context,
    service: Annotated[
        str, typer.Argument(help="nats, triton, data, trainer, …; all when left out.")
    ] = "mesh",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="From the end.")] = 50,
) -> None:
    """Show the log of the mesh, or of one process."""
    path = connection(context).home.logs / f"{service}.log"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in path.parent.glob("*.log")))
        raise MeshError(f"there is no log of {service!r}; there are: {known or 'none yet'}")
    with path.open(errors="replace") as file:
        for line in file.readlines()[-lines:] if lines else ():
            print(line, end="")
        if follow:
            file.seek(0, 2)
            for line in _growing(file, path):
                print(line, end="", flush=True)


def _growing(file: TextIO, path: Path) -> Iterator[str]:
    """Lines as they are added; goes over to the new file when the log is turned over."""
    inode = path.stat().st_ino
    while True:
        line = file.readline()
        if line:
            yield line
            continue
        if path.exists() and path.stat().st_ino != inode:
            with path.open(errors="replace") as newer:
                yield from _growing(newer, path)
        time.sleep(_FOLLOW_SECONDS)
