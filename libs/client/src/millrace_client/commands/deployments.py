"""``millrace deployments``: how each model is to be served."""

from enum import StrEnum
from typing import Annotated

import typer

from millrace_client.api import Json
from millrace_client.connection import api
from millrace_client.output import Columns, JsonOption, LimitOption, created, show, show_list

app = typer.Typer(help="Say which checkpoints are served, compressed for what, and how carefully.")


class Tracking(StrEnum):
    """Which checkpoints a deployment wants."""

    EVERY = "every"
    FINAL = "final"


_COLUMNS: Columns = {
    "deployment": lambda d: d["id"],
    "model": lambda d: d["model"],
    "tracks": lambda d: d["tracking"],
    "targets": lambda d: " ".join(d["targets"]),
    "gate": lambda d: ", ".join(f"{k} {v:g}" for k, v in d["gate"].items() if v is not None),
    "strategy": lambda d: _strategy(d.get("strategy") or {}),
    "created": created,
}
DeploymentArgument = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="deployment-…")]
TrackingOption = Annotated[Tracking | None, typer.Option("--tracking", help="Which checkpoints.")]
TargetOption = Annotated[
    list[str] | None, typer.Option("--target", help="openvino_int8 or openvino_fp32; repeatable.")
]
PerplexityOption = Annotated[
    float | None,
    typer.Option("--max-perplexity-increase", min=0, help="0.02 allows 2 %."),
]
AgreementOption = Annotated[float | None, typer.Option("--min-top1-agreement", min=0, max=1)]
ImmediateOption = Annotated[bool, typer.Option("--immediate", help="No canary.")]
StepOption = Annotated[
    list[float] | None, typer.Option("--step", help="Share of the canary; repeatable, rising.")
]
BakeOption = Annotated[float | None, typer.Option("--bake-seconds", min=0, help="A step's least.")]


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List deployments. A model that nobody wrote one for gets a sensible one by itself."""
    with api(context) as client:
        found = client.deployments.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no deployments yet")


@app.command("show")
def show_(
    context: typer.Context, deployment: DeploymentArgument, as_json: JsonOption = False
) -> None:
    """Show one deployment."""
    with api(context) as client:
        show(client.deployments.get(deployment), as_json=as_json)


@app.command()
def create(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Id of the model; it need not exist yet.")],
    tracking: TrackingOption = None,
    target: TargetOption = None,
    max_perplexity_increase: PerplexityOption = None,
    min_top1_agreement: AgreementOption = None,
    immediate: ImmediateOption = False,
    step: StepOption = None,
    bake_seconds: BakeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how a model is to be served, before its first checkpoint comes.

    [bold]Example[/bold]

      millrace deployments create demo --tracking final --step 0.1 --step 0.5 --bake-seconds 60
    """
    body = _body(
        tracking,
        target,
        max_perplexity_increase,
        min_top1_agreement,
        _strategy_body(immediate, step, bake_seconds),
    )
    with api(context) as client:
        show(client.deployments.create({"model": model, **body}), as_json=as_json)


@app.command()
def update(
    context: typer.Context,
    deployment: DeploymentArgument,
    tracking: TrackingOption = None,
    target: TargetOption = None,
    max_perplexity_increase: PerplexityOption = None,
    min_top1_agreement: AgreementOption = None,
    immediate: ImmediateOption = False,
    step: StepOption = None,
    bake_seconds: BakeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what is given; the rest stays. A gate or a strategy is replaced whole."""
    body = _body(
        tracking,
        target,
        max_perplexity_increase,
        min_top1_agreement,
        _strategy_body(immediate, step, bake_seconds),
    )
    with api(context) as client:
        show(client.deployments.update(deployment, body), as_json=as_json)


def _body(
    tracking: Tracking | None,
    targets: list[str] | None,
    max_perplexity_increase: float | None,
    min_top1_agreement: float | None,
    strategy: Json | None,
) -> Json:
    gate = {
        "max_perplexity_increase": max_perplexity_increase,
        "min_top1_agreement": min_top1_agreement,
    }
    given_gate = {key: value for key, value in gate.items() if value is not None}
    fields = {
        "tracking": tracking and tracking.value,
        "targets": targets or None,
        "gate": given_gate or None,
        "strategy": strategy,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _strategy_body(
    immediate: bool, steps: list[float] | None, bake_seconds: float | None
) -> Json | None:
    if immediate:
        return {"type": "immediate"}
    canary: Json = {}
    if steps:
        canary["steps"] = steps
    if bake_seconds is not None:
        canary["bake_seconds"] = bake_seconds
    return {"type": "canary", **canary} if canary else None


def _strategy(strategy: Json) -> str:
    if strategy.get("type") != "canary":
        return str(strategy.get("type", "-"))
    steps = " → ".join(f"{share:.0%}" for share in [*strategy["steps"], 1.0])
    return f"{steps}, {strategy['bake_seconds']:g} s each"
