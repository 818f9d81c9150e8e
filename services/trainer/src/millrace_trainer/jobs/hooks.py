"""What the training loop tells of itself, and who listens. The loop knows none of them."""

import time
from collections.abc import Sequence
from typing import Protocol

from millrace_runtime.jobs import Reporter
from millrace_runtime.tracking import Tracking
from millrace_trainer.jobs.checkpoint import Committed


class Hook(Protocol):
    """A listener; what it raises ends the run, so a listener that may fail catches for itself."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None: ...

    def on_checkpoint(self, checkpoint: Committed) -> None: ...

    def on_end(self) -> None: ...


class ReportProgress:
    """Tells the service, every ``period_seconds`` at most, and of every checkpoint."""

    def __init__(self, reporter: Reporter, total_steps: int, period_seconds: float) -> None:
        self._reporter = reporter
        self._total = total_steps
        self._period = period_seconds
        self._last = 0.0

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._last >= self._period or step == self._total:
            self._last = now
            self._reporter.progress("train", step, self._total, metrics)

    def on_checkpoint(self, checkpoint: Committed) -> None:
        self._reporter.report("checkpoint", **checkpoint.report_fields())

    def on_end(self) -> None:
        return


class Track:
    """Tells MLflow."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self._tracking.log(step, metrics)

    def on_checkpoint(self, checkpoint: Committed) -> None:
        loss = checkpoint.metadata["heldout_loss"]
        if loss is not None:
            self._tracking.log(checkpoint.metadata["step"], {"heldout_loss": loss})
        folder = f"step-{checkpoint.metadata['step']}"
        self._tracking.log_file(checkpoint.path / "model" / "config.json", folder)

    def on_end(self) -> None:
        self._tracking.close()


class Hooks:
    """Several listeners as one."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        for hook in self._hooks:
            hook.on_step(step, metrics)

    def on_checkpoint(self, checkpoint: Committed) -> None:
        for hook in self._hooks:
            hook.on_checkpoint(checkpoint)

    def on_end(self) -> None:
        for hook in self._hooks:
            hook.on_end()
