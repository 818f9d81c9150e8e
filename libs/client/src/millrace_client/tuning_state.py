"""What a watcher knows of a fine-tuning job: its updates, put together. No input or output."""

from collections.abc import Callable
from dataclasses import dataclass, field

from millrace_client.api import Json
from millrace_client.pace import Pace
from millrace_client.tuning_feed import EVENT, JOB, Away, Update

STAGES = ("validating", "queued", "training", "rollout")
_TRAIN, _ROLLOUT = "train", "rollout"


@dataclass
class Tuning:
    """A job as its updates tell it.

    Attributes:
        clock: seconds of this machine that never go back.
        series: each metric's value by step.
        checkpoints: as the API lists them, oldest first; whoever follows the job reads them.
        away: why the gateway does not answer; empty while it does.
    """

    clock: Callable[[], float]
    job: Json = field(default_factory=dict)
    series: dict[str, dict[int, float]] = field(default_factory=dict)
    checkpoints: list[Json] = field(default_factory=list)
    message: str = ""
    away: str = ""
    _pace: Pace = field(default_factory=Pace)
    _is_paced_live: bool = False

    def take(self, update: Update) -> None:
        """Learn one update."""
        if isinstance(update, Away):
            self.away = update.reason
            return
        self.away = ""
        if update["object"] == EVENT:
            self._take_event(update)
        elif update["object"] == JOB:
            self._take_job(update)

    def _take_event(self, event: Json) -> None:
        self.message = event["message"]
        figures = event.get("data") or {}
        if "step" not in figures:
            return
        step, is_measured = int(figures["step"]), event.get("type") == "metrics"
        for name, value in figures.items():
            if name != "step" and value is not None:
                known = self.series.setdefault(name, {})
                # A checkpoint repeats what its step measured, or sums up an epoch.
                known[step] = float(value) if is_measured else known.get(step, float(value))
        # The moments of the past are the server's; once the job itself is told, ours count.
        if is_measured and not self._is_paced_live:
            self._pace.observe(step, float(event["created_at"]))

    def _take_job(self, job: Json) -> None:
        self.job = job
        if self.is_stepping:
            if not self._is_paced_live:
                self._is_paced_live = True
                self._pace.change_clock()
            self._pace.observe(job["progress"]["completed"], self.clock())

    @property
    def stage(self) -> str:
        """One of ``STAGES``; that of an ended job is where it ended."""
        status = str(self.job.get("status", ""))
        phase = (self.job.get("progress") or {}).get("phase", "")
        if status == "validating_files":
            return "validating"
        if phase in (_TRAIN, _ROLLOUT):
            return "training" if phase == _TRAIN else "rollout"
        return "queued" if status == "queued" else "training"

    @property
    def is_stepping(self) -> bool:
        """Whether its progress is in steps of training; before, examples are read and counted."""
        return bool((self.job.get("progress") or {}).get("phase") == _TRAIN)

    @property
    def completed(self) -> int:
        return int((self.job.get("progress") or {}).get("completed", 0))

    @property
    def total(self) -> int:
        return int((self.job.get("progress") or {}).get("total", 0))

    @property
    def epochs(self) -> int:
        """How many there are to be; 0 while nobody knows."""
        method = self.job.get("method") or {}
        told = (method.get(method.get("type")) or {}).get("hyperparameters")
        epochs = (told or self.job.get("hyperparameters") or {}).get("n_epochs")
        return epochs if isinstance(epochs, int) else 0

    def newest(self, metric: str) -> float | None:
        """What was last told of a metric."""
        live = (self.job.get("progress") or {}).get("metrics", {}).get(metric)
        return live if live is not None else next(reversed(self.values(metric)), None)

    def values(self, metric: str) -> list[float]:
        """In the order of their steps."""
        return [value for _, value in sorted(self.series.get(metric, {}).items())]

    def best(self, metric: str) -> tuple[int, float] | None:
        """Step and value of a loss where it was lowest."""
        found = self.series.get(metric)
        return min(found.items(), key=lambda item: (item[1], item[0])) if found else None

    def seconds_left(self, now_seconds: float) -> float | None:
        """Of training, at the smoothed pace, else as the service estimates it.

        ``now_seconds`` are since the epoch. Rollout takes its time after that.
        """
        if self.job.get("status") != "running" or not self.is_stepping:
            return None
        if self._is_paced_live:
            left = self._pace.seconds_left(self.completed, self.total, self.clock())
            if left is not None:
                return left
        estimate = self.job.get("estimated_finish")
        return max(0.0, estimate - now_seconds) if estimate else None

    def elapsed_seconds(self, now_seconds: float) -> float:
        """Since the job was made, to its end when it has one."""
        end = self.job.get("finished_at") or now_seconds
        return max(0.0, float(end) - float(self.job.get("created_at") or end))
