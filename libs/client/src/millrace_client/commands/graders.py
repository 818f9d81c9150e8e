"""``millrace graders``: try a grader before a job is paid for with it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from millrace_client.connection import api
from millrace_client.output import Json, JsonOption, console, show

app = typer.Typer(help="Try graders: what rewards answers in reinforcement jobs.")
_PATH = "/v1/fine_tuning/alpha/graders"
# A judge may take its time.
_TIMEOUT_SECONDS = 200.0
GraderArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The grader's JSON; - is standard input.")
]


@app.command()
def validate(context: typer.Context, grader: GraderArgument, as_json: JsonOption = False) -> None:
    """Say whether a grader can be used, and if not, which field is wrong."""
    body = {"grader": _read(grader)}
    with api(context) as client:
        found = client.request("POST", f"{_PATH}/validate", json=body, timeout=_TIMEOUT_SECONDS)
    if as_json:
        show(found, as_json=True)
    else:
        console().print(f"{grader}: a {found['grader']['type']} grader, and right", markup=False)


@app.command()
def run(
    context: typer.Context,
    grader: GraderArgument,
    sample: Annotated[str, typer.Option("--sample", "-s", help="The model's answer.")],
    item: Annotated[
        str, typer.Option("--item", "-i", help="The row it answers: JSON, or a path to some.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Grade one answer.

    [bold]Example[/bold]

      millrace graders run grader.json --sample 42 --item '{"answer": "42"}'
    """
    body: Json = {"grader": _read(grader), "model_sample": sample}
    if item:
        is_text = item.lstrip().startswith("{")
        body["item"] = _parsed(item, "--item") if is_text else _read(Path(item))
    with api(context) as client:
        found = client.request("POST", f"{_PATH}/run", json=body, timeout=_TIMEOUT_SECONDS)
    show(found if as_json else _without_good_news(found), as_json=as_json)


def _read(path: Path) -> Any:
    """
    Raises:
        BadParameter: there is no such file, or it is no JSON.
    """
    try:
        text = typer.get_text_stream("stdin").read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from None
    return _parsed(text, str(path))


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{what} is no JSON: {error}") from None


def _without_good_news(grade: Json) -> Json:
    """The grade with those flags only that say what went wrong."""
    metadata = grade["metadata"]
    wrong = {name: value for name, value in metadata["errors"].items() if value}
    return {**grade, "metadata": {**metadata, "errors": wrong}}
