"""How a fine-tuning job looks: a picture on a terminal, lines elsewhere. Pure."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from millrace_client import output, text
from millrace_client.api import Json
from millrace_client.sparkline import sparkline
from millrace_client.tuning_state import STAGES, Tuning

_BAR_WIDTH = 32
_SPARK_WIDTH = 40
_CHECKPOINTS_SHOWN = 6
_FIGURES = {
    "learning_rate": "learning rate {}",
    "tokens_per_second": "{} tokens/s",
    "train_accuracy": "token accuracy {}",
}


def picture(tuning: Tuning, now_seconds: float) -> RenderableType:
    """The whole of a job, as it is now (seconds since the epoch)."""
    if not tuning.job:
        return Text(tuning.away or "…", style="dim")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, cell in _rows(tuning, now_seconds):
        # As text, not as markup: messages may hold brackets.
        grid.add_row(Text(name), Text(cell) if isinstance(cell, str) else cell)
    return Group(_headline(tuning.job), _stages(tuning), grid)


def _headline(job: Json) -> Text:
    tuned = job.get("fine_tuned_model")
    line = Text.assemble((job["id"], "bold"), "  ", str(job["model"]))
    line.append(f" → {tuned}" if tuned else "", style="green")
    line.append(f"  {method_words(job)}", style="dim")
    return line.append("  ").append_text(output.state(job["status"]))


def method_words(job: Json) -> str:
    """``dpo, dora rank 8``: how a job tunes."""
    method = job.get("method") or {}
    kind = str(method.get("type", ""))
    adapter = (method.get(kind) or {}).get("adapter") or {}
    words = [str(adapter["kind"])] if adapter.get("kind") else []
    words += [f"rank {adapter['rank']}"] if adapter.get("rank") else []
    return f"{kind}, {' '.join(words)}" if words else kind


def _stages(tuning: Tuning) -> Text:
    """``✔ validating  ✔ queued  ▶ training  ○ rollout``."""
    status, here = tuning.job["status"], STAGES.index(tuning.stage)
    marks = {"succeeded": ("✔", "green"), "failed": ("✘", "red"), "cancelled": ("■", "yellow")}
    line = Text()
    for index, stage in enumerate(STAGES):
        if index > here and status == "succeeded":
            break  # what it made is not served: it has ended without
        mark, style = ("✔", "green") if index < here else ("○", "dim")
        if index == here:
            mark, style = marks.get(status, ("‖" if status == "paused" else "▶", "cyan"))
        line.append(f"{mark} {stage}   ", style=style)
    return line


def _rows(tuning: Tuning, now_seconds: float) -> Iterator[tuple[str, RenderableType]]:
    yield "progress", _progress(tuning)
    for metric in _drawn(tuning):
        yield metric.removeprefix("train_").replace("_", " "), _curve(tuning, metric)
    if best := tuning.best("valid_loss"):
        newest = tuning.newest("valid_loss")
        yield "validation", f"{newest:.4g}, best {best[1]:.4g} at step {best[0]:,}"
    if figures := _figures(tuning):
        yield "", figures
    yield "time", _time(tuning, now_seconds)
    hidden = len(tuning.checkpoints) - _CHECKPOINTS_SHOWN
    for index, checkpoint in enumerate(tuning.checkpoints[-_CHECKPOINTS_SHOWN:]):
        earlier = f" ({hidden} earlier)" if hidden > 0 and index == 0 else ""
        yield "checkpoint" if index == 0 else "", Text(_checkpoint(checkpoint) + earlier)
    if tuning.away:
        yield "waiting", Text(tuning.away, style="yellow")
    elif tuning.message:
        yield "newest", Text(tuning.message)


def _progress(tuning: Tuning) -> Text:
    if tuning.stage == "rollout":
        return Text("compressed, measured, loaded, and given its share of the traffic")
    if not tuning.total:
        return Text("-")
    filled = min(_BAR_WIDTH * tuning.completed // tuning.total, _BAR_WIDTH)
    line = Text("━" * filled, style="cyan").append("─" * (_BAR_WIDTH - filled), style="dim")
    line.append(f"  {text.progress(tuning.job['progress'])}")
    if tuning.epochs and tuning.is_stepping:
        line.append(f"  epoch {tuning.completed / tuning.total * tuning.epochs:.1f}")
        line.append(f"/{tuning.epochs}")
    return line


def _drawn(tuning: Tuning) -> list[str]:
    """The training loss, and of reinforcement the rewards."""
    return [name for name in sorted(tuning.series) if name == "train_loss" or "reward" in name]


def _curve(tuning: Tuning, metric: str) -> Text:
    values = tuning.values(metric)
    newest = tuning.newest(metric)
    line = Text(sparkline(values, _SPARK_WIDTH), style="cyan")
    line.append("  -" if newest is None else f"  {newest:.4g}", style="bold")
    return line.append(f"  from {values[0]:.4g}", style="dim")


def _figures(tuning: Tuning) -> str:
    told = {name: tuning.newest(name) for name in _FIGURES}
    return " · ".join(
        _FIGURES[name].format(text.number(value)) for name, value in told.items() if value
    )


def _time(tuning: Tuning, now_seconds: float) -> str:
    line = f"{text.duration(tuning.elapsed_seconds(now_seconds))} since it was made"
    left = tuning.seconds_left(now_seconds)
    return line if left is None else f"{line} · about {text.duration(left)} of training left"


def _checkpoint(checkpoint: Json) -> str:
    """``step 40  loss 1.9  validation 2.01  ft:demo:…:ckpt-step-40``."""
    metrics = checkpoint["metrics"]
    valid = metrics.get("valid_loss")
    parts = [f"step {checkpoint['step_number']:,}", f"loss {text.number(metrics['train_loss'])}"]
    parts += [f"validation {text.number(valid)}"] if valid is not None else []
    return "  ".join([*parts, checkpoint["fine_tuned_model_checkpoint"]])


def event_line(event: Json) -> str:
    """``12:00:01 Step 10/100: training loss=2.31  learning_rate=0.0002``: for pipes and logs."""
    figures = (event.get("data") or {}).items()
    told = [
        f"{name}={value:.6g}"
        for name, value in figures
        if isinstance(value, int | float) and name not in ("step", "train_loss")
    ]
    level = "" if event["level"] == "info" else f"{event['level']}: "
    line = f"{text.clock(event['created_at'])} {level}{event['message']}"
    return f"{line}  {' '.join(told)}" if told else line


def checkpoint_line(checkpoint: Json) -> str:
    """``12:00:01 checkpoint step=40 train_loss=1.9 valid_loss=2.01 model=ft:…:ckpt-step-40``."""
    metrics = checkpoint["metrics"]
    losses = {name: metrics.get(name) for name in ("train_loss", "valid_loss")}
    told = "".join(f" {name}={loss:.6g}" for name, loss in losses.items() if loss is not None)
    model = checkpoint["fine_tuned_model_checkpoint"]
    step = checkpoint["step_number"]
    return f"{text.clock(checkpoint['created_at'])} checkpoint step={step}{told} model={model}"
