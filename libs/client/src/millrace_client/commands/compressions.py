"""``millrace compressions``: checkpoints made fit for the hardware that serves them."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from millrace_client import text
from millrace_client.commands.deployments import (
    TaskDecreaseOption,
    TaskOption,
    TaskScoreOption,
    task_body,
)
from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    Json,
    JsonOption,
    LimitOption,
    console,
    created,
    print_json,
    show,
    show_list,
    state,
    table,
)

app = typer.Typer(help="See what became of each checkpoint, and what was measured.")


class Method(StrEnum):
    ROUND_TO_NEAREST = "round_to_nearest"
    AWQ = "awq"
    GPTQ = "gptq"
    SCALE_ESTIMATION = "scale_estimation"


class Source(StrEnum):
    OWN = "own"
    GENERIC = "generic"


class Beside(StrEnum):
    CHECKPOINT = "checkpoint"
    MODEL = "model"


CompressionArgument = Annotated[str, typer.Argument(metavar="COMPRESSION", help="compression-…")]
CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="runs/run-…/checkpoints/ckpt-… or jobs/…")
]
TargetOption = Annotated[
    str, typer.Option("--target", help="What for: openvino_int8, openvino_int4, …, or auto.")
]
_ROW_COLUMNS: Columns = {
    "measured": lambda row: row["name"],
    "original": lambda row: _measured(row["original"], row["unit"]),
    "artifact": lambda row: _measured(row["artifact"], row["unit"]),
    "change": lambda row: _change(row),
}
_TRIAL_COLUMNS: Columns = {
    "tried": lambda trial: _candidate(trial),
    "size": lambda trial: text.size(trial["size_bytes"]),
    "perplexity": lambda trial: _signed(trial["perplexity_increase"]),
    "top-1": lambda trial: _measured(trial["top1_agreement"], "share"),
    "latency": lambda trial: _measured(trial["latency_seconds"], "seconds"),
    "tokens": lambda trial: str(trial["evaluated_tokens"] or "-"),
    "gate": lambda trial: _word(trial),
}
_COLUMNS: Columns = {
    "compression": lambda c: c["id"],
    "model": lambda c: c["model"],
    "step": lambda c: f"{c['checkpoint_step']}{' final' if c['checkpoint_final'] else ''}",
    "target": lambda c: _target(c),
    "state": lambda c: state(_outcome(c)),
    "perplexity": lambda c: _perplexity_increase(c["measurements"]),
    "size": lambda c: text.size(c["measurements"].get("artifact_size_bytes")),
    "took": lambda c: _seconds(c),
    "created": created,
}


@app.command("list")
def list_(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-M", help="Of this model alone.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List compressions, newest first."""
    with api(context) as client:
        found = client.compressions.list(limit, **({"model": model} if model else {}))
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no compressions yet")


@app.command("show")
def show_(
    context: typer.Context, compression: CompressionArgument, as_json: JsonOption = False
) -> None:
    """Show one compression: verdict and reasons, and what was measured, beside the original."""
    with api(context) as client:
        if as_json:
            print_json(client.compressions.get(compression))
            return
        found = client.request("GET", f"/v1/compressions/{compression}/report")
    one = found["compression"]
    show({key: value for key, value in one.items() if key != "measurements"}, as_json=False)
    _show_rows(found["rows"], one["measurements"])


@app.command("report")
def report_(
    context: typer.Context,
    compression: CompressionArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the plot, an SVG.")
    ] = None,
    of: Annotated[
        Beside, typer.Option("--of", help="Beside the artifacts of its checkpoint, or its model.")
    ] = Beside.CHECKPOINT,
    as_json: JsonOption = False,
) -> None:
    """Compare an artifact with its original and with others of its checkpoint or model."""
    path = f"/v1/compressions/{compression}/report"
    with api(context) as client:
        found = client.request("GET", path, params={"of": of.value})
        if output is not None:
            output.write_bytes(client.compression_plot(compression, of.value))
    if as_json:
        print_json(found)
        return
    _show_rows(found["rows"], found["compression"]["measurements"])
    if found["others"]:
        console().print()
        console().print(table([found["compression"], *found["others"]], _COLUMNS))
    if output is not None:
        console().print(f"the plot is in {output}", markup=False)


@app.command("create")
def create(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    target: TargetOption,
    max_perplexity_increase: Annotated[
        float | None, typer.Option(min=0, help="0.02 allows 2 %.")
    ] = None,
    min_top1_agreement: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    max_size_ratio: Annotated[float | None, typer.Option(help="Artifact over original.")] = None,
    max_size_bytes: Annotated[int | None, typer.Option(min=1, help="Of the weights.")] = None,
    max_latency_seconds: Annotated[float | None, typer.Option(help="First token and one.")] = None,
    max_task_score_decrease: TaskDecreaseOption = None,
    min_task_score: TaskScoreOption = None,
    task: TaskOption = "",
    group_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Weights that share a scale (4 bits).")
    ] = None,
    weight_method: Annotated[Method | None, typer.Option(help="Of targets of 4 bits.")] = None,
    kv_cache_int8: Annotated[
        bool | None, typer.Option(help="Keys and values in 8 bits (OpenVINO).")
    ] = None,
    calibration: Annotated[
        Source | None, typer.Option(help="The model's own data (default), or any text.")
    ] = None,
    calibration_samples: Annotated[int | None, typer.Option(min=1, max=4096)] = None,
    calibration_seed: Annotated[int | None, typer.Option(min=0)] = None,
    compare_calibration: Annotated[
        bool | None, typer.Option(help="Measure the other source too; twice the time.")
    ] = None,
    prune_depth: Annotated[float | None, typer.Option(help="Share of layers to take.")] = None,
    prune_heads: Annotated[float | None, typer.Option(help="Share of key/value groups.")] = None,
    prune_width: Annotated[float | None, typer.Option(help="Share of hidden units.")] = None,
    prune_rounds: Annotated[int | None, typer.Option(min=1, max=32)] = None,
    recovery: Annotated[bool | None, typer.Option(help="Distil the original into it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compress a checkpoint by hand. What the target does not have is refused.

    The target auto tries recipes, and makes the smallest artifact that keeps within the limits.
    """
    gate = {
        "max_perplexity_increase": max_perplexity_increase,
        "min_top1_agreement": min_top1_agreement,
        "max_size_ratio": max_size_ratio,
        "max_size_bytes": max_size_bytes,
        "max_latency_seconds": max_latency_seconds,
        "max_task_score_decrease": max_task_score_decrease,
        "min_task_score": min_task_score,
    }
    calibrated = {
        "source": calibration and calibration.value,
        "samples": calibration_samples,
        "seed": calibration_seed,
        "compare": compare_calibration,
    }
    pruned = {
        "depth": prune_depth,
        "heads": prune_heads,
        "width": prune_width,
        "rounds": prune_rounds,
        "recovery": recovery,
    }
    recipe = {
        "group_size": group_size,
        "weight_method": weight_method and weight_method.value,
        "kv_cache_int8": kv_cache_int8,
        "calibration": _given(calibrated),
        "pruning": _given(pruned),
    }
    body = {"checkpoint": checkpoint, "target": target, "recipe": _given(recipe)}
    body |= {"gate": _given(gate), **task_body(task)}
    with api(context) as client:
        show(client.compressions.create(_given(body)), as_json=as_json)


@app.command("cancel")
def cancel(
    context: typer.Context, compression: CompressionArgument, as_json: JsonOption = False
) -> None:
    """Cancel a compression that has not ended."""
    with api(context) as client:
        show(client.compressions.act(compression, "cancel"), as_json=as_json)


def _given(fields: Mapping[str, object]) -> Json:
    """Those that the user gave."""
    return {key: value for key, value in fields.items() if value is not None and value != {}}


def _show_rows(rows: list[Json], measured: Json) -> None:
    """What was measured, original beside artifact, and what it was calibrated on."""
    known = [row for row in rows if row["original"] is not None or row["artifact"] is not None]
    if not known:
        console().print("nothing has been measured yet")
        return
    console().print()
    console().print(table(known, _ROW_COLUMNS))
    task = measured.get("task")
    if task:
        console().print(_asked(task), markup=False)
    calibrated = measured.get("calibration")
    if calibrated:
        console().print(_calibrated(calibrated), markup=False)
    search = measured.get("search")
    if search:
        console().print()
        console().print(table(search["trials"], _trial_columns(search["trials"])))
        console().print(f"{search['reason']}; {search['hardware']}", markup=False)


def _trial_columns(trials: list[Json]) -> Columns:
    """With what the gate judges of the task, if it does."""
    if all(trial.get("task_score") is None for trial in trials):
        return _TRIAL_COLUMNS
    return {**_TRIAL_COLUMNS, "task": lambda trial: _measured(trial["task_score"], "share")}


def _asked(task: Json) -> str:
    said = (
        f"asked {task['rows']} rows of {task['file']}, at most {task['max_answer_tokens']} tokens "
        f"each, seed {task['seed']} ({task['digest'][:19]}…)"
    )
    return f"{said}; {task['skipped_rows']} left out" if task["skipped_rows"] else said


def _calibrated(record: Json) -> str:
    said = (
        f"calibrated on {record['windows']} windows of {record['window_tokens']} tokens, "
        f"{record['source']} data, seed {record['seed']} ({record['digest'][:19]}…)"
    )
    if record["note"]:
        said += f"; {record['note']}"
    other = record.get("other")
    if other and other["artifact_perplexity"] is not None:
        said += f"; with {other['source']} data perplexity is {other['artifact_perplexity']:.4g}"
    return said


def _candidate(trial: Json) -> str:
    recipe = trial["recipe"]
    said = [trial["target"]]
    if recipe.get("group_size"):
        said.append(f"g{recipe['group_size']}")
    if recipe.get("weight_method"):
        said.append(recipe["weight_method"])
    if trial["layers_in_8_bits"]:
        said.append(f"{trial['layers_in_8_bits']} layers in 8 bits")
    return " ".join(said)


def _word(trial: Json) -> str:
    """The gate's word on one candidate, with a mark at the one that was taken."""
    if trial["error"]:
        return str(trial["error"])
    said = f"breaks {', '.join(trial['broken'])}" if trial["broken"] else "passes"
    return f"{said}, chosen" if trial["chosen"] else said


def _signed(share: float | None) -> str:
    return "-" if share is None else f"{share:+.2%}"


def _measured(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "bytes":
        return text.size(value)
    if unit == "seconds":
        return text.duration(value)
    if unit == "share":
        return f"{value:.2%}"
    return f"{text.number(value, 4)}{'' if not unit else ' ' + unit}"


def _change(row: Json) -> str:
    before, after = row["original"], row["artifact"]
    return f"{after / before - 1:+.1%}" if before and after is not None else "-"


def _target(compression: Json) -> str:
    chosen = compression.get("chosen")
    return f"{compression['target']}: {chosen['target']}" if chosen else str(compression["target"])


def _outcome(compression: Json) -> str:
    verdict = compression.get("verdict")
    rejected = compression["status"] == "succeeded" and verdict and not verdict["passed"]
    return "rejected" if rejected else str(compression["status"])


def _perplexity_increase(measured: Json) -> str:
    before, after = measured.get("original_perplexity"), measured.get("artifact_perplexity")
    return f"{(after - before) / before:+.2%}" if before and after else "-"


def _seconds(compression: Json) -> str:
    started, finished = compression.get("started_at"), compression.get("finished_at")
    return text.duration(finished - started) if started and finished else "-"
