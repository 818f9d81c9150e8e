"""The pre-training run, and what is served of it while it still trains."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from millrace_client import text
from millrace_client.api import Json
from millrace_mesh.demo import serving
from millrace_mesh.demo.session import Session, require_success
from millrace_mesh.demo.traffic import Traffic

_TIMEOUT_SECONDS = 1800.0
_SHOWN = {
    "loss": "loss",
    "tokens_per_second": "tokens/s",
    "model_flops_utilization": "MFU",
}


def ensure(session: Session, dataset: Json) -> Json:
    """The training run that is asked for, as it stands."""
    body = {
        "model": session.plan.model,
        "dataset": dataset["id"],
        "architecture": dict(session.plan.architecture),
        "hyperparameters": dict(session.plan.hyperparameters),
    }
    return session.ensure(
        lambda request_id: session.api.runs.create(body, request_id=request_id), "run"
    )


@dataclass
class _Seen:
    checkpoints: set[str] = field(default_factory=set)
    serving: int = 0


def follow(session: Session, run: Json, traffic: Traffic) -> Json:
    """Follow a run to its end, and greet each version that takes over meanwhile.

    Raises:
        DemoFailed: it failed, or takes too long.
    """
    seen = _Seen()

    def ended() -> Json | None:
        found = session.api.runs.get(run["id"])
        for checkpoint in _new_checkpoints(session, run, seen):
            session.screen.say(_describe_checkpoint(checkpoint))
        _greet(session, seen, traffic)
        session.screen.live(f"{_describe(found)}   {traffic.summary}")
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    found = session.until(ended, "the run ends", _TIMEOUT_SECONDS)
    require_success(found, "run", "trainer")
    session.screen.say(
        f"trained {found['parameter_count']:,} parameters for {found['progress']['total']:,} steps"
    )
    return found


def final_checkpoint(session: Session, run: Json) -> Json:
    """The last checkpoint of a run that succeeded."""
    checkpoints = session.patiently(lambda: session.api.runs.children(run["id"], "checkpoints"))
    return next(checkpoint for checkpoint in checkpoints if checkpoint["final"])


def _greet(session: Session, seen: _Seen, traffic: Traffic) -> None:
    version = serving.version(session, session.plan.model)
    if version and version != seen.serving:
        seen.serving = version
        traffic.start()
        session.screen.say(serving.greeting(session, session.plan.model))


def _new_checkpoints(session: Session, run: Json, seen: _Seen) -> Iterator[Json]:
    for checkpoint in reversed(session.api.runs.children(run["id"], "checkpoints")):
        if checkpoint["id"] not in seen.checkpoints:
            seen.checkpoints.add(checkpoint["id"])
            yield checkpoint


def _describe(run: Json) -> str:
    progress = run["progress"]
    if not progress:
        return f"run {run['status']}"
    metrics = progress["metrics"]
    figures = "  ".join(
        f"{name} {text.number(metrics[key])}" for key, name in _SHOWN.items() if key in metrics
    )
    return f"{text.progress(progress)}  {figures}"


def _describe_checkpoint(checkpoint: Json) -> str:
    return (
        f"checkpoint at step {checkpoint['step']}: loss {checkpoint['train_loss']:.3f}, held out "
        f"{checkpoint['heldout_loss']:.3f}, {checkpoint['tokens_seen']:,} tokens seen"
    )
