"""The ``millrace`` command: what there is, and how its errors are said."""

import sys
from collections.abc import Callable, Mapping, Sequence

import typer
from rich.console import Console

from millrace_client.commands import (
    batches,
    chat,
    compressions,
    datasets,
    dead_letters,
    deployments,
    doctor,
    events,
    files,
    graders,
    keys,
    lineage,
    mesh,
    models,
    prompts,
    recalls,
    rollouts,
    runs,
    trace,
    tune,
    tune_serving,
    webhooks,
)
from millrace_client.connection import Connection
from millrace_client.errors import ApiError, MillraceError

_HELP = """Carry a language model through its whole life.

[bold]Start[/bold]
  millrace up --detach            run the mesh on this machine
  eval "$(millrace env)"          point any OpenAI client at it
  millrace status                 what runs, and since when

[bold]From data to answers[/bold]
  millrace datasets create --python-stdlib
  millrace runs create --dataset dataset-… --model demo
  millrace runs watch run-…       loss, speed, checkpoints as they come
  millrace chat demo              talk to the newest settled checkpoint
  millrace tune create --model demo --file pairs.jsonl --watch
  millrace batches create requests.jsonl --endpoint /v1/chat/completions

[bold]Why things are as they are[/bold]
  millrace events --follow        every fact, as it becomes true
  millrace trace                  where the time went, across all services
  millrace lineage demo@3         what a version came from
  millrace recall --row '{…}'     which versions learnt from a row
  millrace doctor                 what is wrong, and what to do
  millrace dead-letters list      facts that could not be handled, and why
"""
_EPILOG = """[bold]Environment[/bold]

MILLRACE_HOME: state of the mesh on this machine (default ./.millrace) ·
MILLRACE_BASE_PORT: its first port (default 8080); one setting moves all ·
MILLRACE_BASE_URL or OPENAI_BASE_URL: a gateway elsewhere ·
OPENAI_API_KEY: the key for it
"""

app = typer.Typer(
    name="millrace",
    help=_HELP,
    epilog=_EPILOG,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(context: typer.Context) -> None:
    context.obj = context.obj or Connection()


_COMMANDS: Mapping[str, Sequence[Callable[..., None]]] = {
    "This machine": (
        mesh.up,
        mesh.down,
        mesh.restart,
        mesh.status,
        mesh.env,
        mesh.logs,
        doctor.doctor,
    ),
    "Talk": (chat.chat, chat.complete),
    "Understand": (events.events, trace.trace, lineage.lineage, recalls.recall, models.versions),
}
_GROUPS: Mapping[str, typer.Typer] = {
    "files": files.app,
    "datasets": datasets.app,
    "runs": runs.app,
    "tune": tune.app,
    "graders": graders.app,
    "prompts": prompts.app,
    "compressions": compressions.app,
    "rollouts": rollouts.app,
    "recalls": recalls.app,
    "deployments": deployments.app,
    "tune-serving": tune_serving.app,
    "batches": batches.app,
    "webhooks": webhooks.app,
    "dead-letters": dead_letters.app,
    "keys": keys.app,
}

for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(models.app, name="models", rich_help_panel="Talk")
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name, rich_help_panel="Lifecycle", no_args_is_help=True)
app.add_typer(rollouts.app, name="rollout", hidden=True)  # as people say of one


def main() -> None:
    """Run the command line; a known error is one line on standard error and status 1."""
    try:
        app()
    except MillraceError as error:
        _say(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(error: MillraceError) -> None:
    where = f" (parameter {error.param})" if isinstance(error, ApiError) and error.param else ""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"[bold red]error:[/] {error}{where}", markup=True
    )
