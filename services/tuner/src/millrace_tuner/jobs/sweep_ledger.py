"""What a sweep has tried, in ``sweep.json``: all that it needs to go on after it was killed."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_tuner.sweep import Sweep

LEDGER_NAME = "sweep.json"

State = Literal["running", "finished", "pruned", "diverged", "failed"]


@dataclass
class Trial:
    """One training.

    Attributes:
        number: from 1.
        values: of the metric that decides, by epoch.
        measured: at the last epoch, on the held-out examples.
        message: why it came to no end.
    """

    number: int
    parameters: dict[str, float]
    state: State = "running"
    values: dict[int, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    trained_tokens: int = 0
    seconds: float = 0.0
    message: str = ""

    @property
    def value(self) -> float | None:
        """The last that was measured of the metric that decides."""
        return self.values[max(self.values)] if self.values else None


class Ledger:
    """The trials of one sweep; the last may still be running."""

    def __init__(self, directory: Path, spec_digest: str, sweep: Sweep) -> None:
        """
        Raises:
            JobError: OUTPUT_DIRECTORY_IN_USE, it is another sweep's.
        """
        self._path = directory / LEDGER_NAME
        self._spec_digest = spec_digest
        self._sweep = sweep
        self.trials: list[Trial] = []
        if self._path.exists():
            self._load()

    def _load(self) -> None:
        document = json.loads(self._path.read_text(encoding="utf-8"))
        if document["spec_digest"] != self._spec_digest:
            message = f"{self._path} belongs to another sweep; give this job its own directory"
            raise JobError("OUTPUT_DIRECTORY_IN_USE", message)
        self.trials = [_trial(each) for each in document["trials"]]

    def save(self) -> None:
        """Write it down so that a reader sees the old or the new."""
        document = {
            "spec_digest": self._spec_digest,
            "trials": [asdict(trial) for trial in self.trials],
        }
        temporary = self._path.with_name(f"{manifest.TEMPORARY_PREFIX}{LEDGER_NAME}")
        manifest.write_durably(temporary, json.dumps(document).encode())
        temporary.replace(self._path)

    @property
    def ended(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state != "running"]

    @property
    def running(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.state == "running"), None)

    @property
    def best(self) -> Trial | None:
        """Of those that finished, the first that none is better than."""
        bests = list(self._bests())
        return bests[-1] if bests else None

    @property
    def is_over(self) -> bool:
        """Whether as much was tried as there was to try."""
        if self.running is not None:
            return False
        best, ended = self.best, len(self.ended)
        without_gain = ended - best.number if best is not None else 0
        patience = self._sweep.patience
        return ended >= self._sweep.trials or 0 < patience <= without_gain

    def is_best_so_far(self, trial: Trial) -> bool:
        """Whether it was better than all before it."""
        return any(best is trial for best in self._bests())

    def _bests(self) -> Iterator[Trial]:
        """Every finished trial that was better than all before it."""
        best: float | None = None
        for trial in self.trials:
            value = trial.value if trial.state == "finished" else None
            if value is not None and (best is None or self._sweep.is_better(value, than=best)):
                best = value
                yield trial


def _trial(document: dict[str, Any]) -> Trial:
    values = {int(epoch): value for epoch, value in document.pop("values").items()}
    return Trial(**document, values=values)
