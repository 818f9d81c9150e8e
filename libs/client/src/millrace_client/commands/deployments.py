"""``millrace deployments``: how each model is to be served."""

import json
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
    list[str] | None,
    typer.Option("--target", help="openvino_int8, openvino_fp32 or safetensors; repeatable."),
]
PerplexityOption = Annotated[
    float | None,
    typer.Option("--max-perplexity-increase", min=0, help="0.02 allows 2 %."),
]
AgreementOption = Annotated[float | None, typer.Option("--min-top1-agreement", min=0, max=1)]
TaskOption = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="JSON|none",
        help="What artifacts are measured by: prompts with reference answers, such as "
        '{"file": "file-…", "metric": "exact_match", "rows": 64}; metrics are exact_match, '
        "contains and token_f1",
    ),
]
TaskDecreaseOption = Annotated[
    float | None,
    typer.Option("--max-task-score-decrease", min=0, max=1, help="0.02: from 50 % to 48 %."),
]
TaskScoreOption = Annotated[float | None, typer.Option("--min-task-score", min=0, max=1)]
ImmediateOption = Annotated[bool, typer.Option("--immediate", help="No canary.")]
StepOption = Annotated[
    list[float] | None, typer.Option("--step", help="Share of the canary; repeatable, rising.")
]
BakeOption = Annotated[float | None, typer.Option("--bake-seconds", min=0, help="A step's least.")]
StrategyOption = Annotated[
    str,
    typer.Option(
        "--strategy",
        metavar="TYPE|JSON",
        help="shadow, blue_green, split, canary or immediate, or all of it: "
        '{"type": "shadow", "share": 0.2}',
    ),
]
AnalysisOption = Annotated[
    str,
    typer.Option(
        "--analysis",
        metavar="JSON",
        help='How a new version is compared: {"maximum_latency_increase": 0.5, '
        '"false_alarm_rate": 0.001}',
    ),
]
InstancesOption = Annotated[
    int | None, typer.Option("--instance-count", min=1, help="Engines of each version.")
]
BatchOption = Annotated[
    int | None, typer.Option("--max-batch-size", min=1, help="Sequences an engine has at once.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Of one engine.")]
CacheOption = Annotated[
    int | None, typer.Option("--cache-gibibytes", min=1, help="Keys and values of one engine.")
]
QueueOption = Annotated[
    int | None, typer.Option("--max-queue-size", min=1, help="Requests that may wait; then 429.")
]
TimeoutOption = Annotated[
    float | None, typer.Option("--queue-timeout-seconds", help="How long each may wait.")
]


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
    task: TaskOption = "",
    max_task_score_decrease: TaskDecreaseOption = None,
    min_task_score: TaskScoreOption = None,
    strategy: StrategyOption = "",
    immediate: ImmediateOption = False,
    step: StepOption = None,
    bake_seconds: BakeOption = None,
    analysis: AnalysisOption = "",
    instance_count: InstancesOption = None,
    max_batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    cache_gibibytes: CacheOption = None,
    max_queue_size: QueueOption = None,
    queue_timeout_seconds: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how a model is to be served, before its first checkpoint comes.

    [bold]Example[/bold]

      millrace deployments create demo --tracking final --step 0.1 --step 0.5 --bake-seconds 60
    """
    body = _body(
        tracking,
        target,
        _given(
            max_perplexity_increase=max_perplexity_increase,
            min_top1_agreement=min_top1_agreement,
            max_task_score_decrease=max_task_score_decrease,
            min_task_score=min_task_score,
        ),
        _strategy_body(strategy, immediate, step, bake_seconds),
        _serving_body(
            _queue_policy(max_queue_size, queue_timeout_seconds),
            instance_count=instance_count,
            max_batch_size=max_batch_size,
            threads=threads,
            cache_gibibytes=cache_gibibytes,
        ),
        _json_of("--analysis", analysis) if analysis else None,
        task_body(task),
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
    task: TaskOption = "",
    max_task_score_decrease: TaskDecreaseOption = None,
    min_task_score: TaskScoreOption = None,
    strategy: StrategyOption = "",
    immediate: ImmediateOption = False,
    step: StepOption = None,
    bake_seconds: BakeOption = None,
    analysis: AnalysisOption = "",
    instance_count: InstancesOption = None,
    max_batch_size: BatchOption = None,
    threads: ThreadsOption = None,
    cache_gibibytes: CacheOption = None,
    max_queue_size: QueueOption = None,
    queue_timeout_seconds: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what is given; the rest stays. A gate, a strategy, an analysis or how a
    model is served is replaced whole, and a change of the last loads the model again."""
    body = _body(
        tracking,
        target,
        _given(
            max_perplexity_increase=max_perplexity_increase,
            min_top1_agreement=min_top1_agreement,
            max_task_score_decrease=max_task_score_decrease,
            min_task_score=min_task_score,
        ),
        _strategy_body(strategy, immediate, step, bake_seconds),
        _serving_body(
            _queue_policy(max_queue_size, queue_timeout_seconds),
            instance_count=instance_count,
            max_batch_size=max_batch_size,
            threads=threads,
            cache_gibibytes=cache_gibibytes,
        ),
        _json_of("--analysis", analysis) if analysis else None,
        task_body(task),
    )
    with api(context) as client:
        show(client.deployments.update(deployment, body), as_json=as_json)


def _body(
    tracking: Tracking | None,
    targets: list[str] | None,
    gate: Json,
    strategy: Json | None,
    serving: Json | None,
    analysis: Json | None,
    task: Json,
) -> Json:
    fields = _given(
        tracking=tracking and tracking.value,
        targets=targets or None,
        gate=gate or None,
        strategy=strategy,
        serving=serving,
        analysis=analysis,
    )
    return {**fields, **task}


def _given(**fields: object) -> Json:
    """Those that the user gave."""
    return {key: value for key, value in fields.items() if value is not None}


def task_body(given: str) -> Json:
    """``none`` takes the task away; nothing leaves it as it is."""
    if not given:
        return {}
    return {"task": None if given == "none" else _json_of("--task", given)}


def _strategy_body(
    strategy: str, immediate: bool, steps: list[float] | None, bake_seconds: float | None
) -> Json | None:
    if strategy:
        if immediate or steps or bake_seconds is not None:
            raise typer.BadParameter("--strategy says all of it: give no other option of one")
        return _given_strategy(strategy)
    if immediate:
        return {"type": "immediate"}
    canary: Json = {}
    if steps:
        canary["steps"] = steps
    if bake_seconds is not None:
        canary["bake_seconds"] = bake_seconds
    return {"type": "canary", **canary} if canary else None


def _given_strategy(given: str) -> Json:
    if not given.lstrip().startswith("{"):
        return {"type": given.replace("-", "_")}
    return _json_of("--strategy", given)


def _json_of(option: str, given: str) -> Json:
    try:
        found: Json = json.loads(given)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is no JSON: {error}") from None
    return found


def _queue_policy(max_queue_size: int | None, queue_timeout_seconds: float | None) -> Json | None:
    policy = {
        "max_queue_size": max_queue_size,
        "default_timeout_seconds": queue_timeout_seconds,
    }
    return {key: value for key, value in policy.items() if value is not None} or None


def _serving_body(queue_policy: Json | None, **engine: int | None) -> Json | None:
    fields = {**engine, "queue_policy": queue_policy}
    return {key: value for key, value in fields.items() if value is not None} or None


def _strategy(strategy: Json) -> str:
    if strategy.get("type") != "canary":
        return str(strategy.get("type", "-"))
    steps = " → ".join(f"{share:.0%}" for share in [*strategy["steps"], 1.0])
    return f"{steps}, {strategy['bake_seconds']:g} s each"
