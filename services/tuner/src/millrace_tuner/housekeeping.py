"""The reconciler's sweep: follow what waits, count what there is, remove what nobody needs."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from prometheus_client import Gauge

from millrace_runtime import manifest
from millrace_tuner.app import TunerApp
from millrace_tuner.domain import Job, JobState, utc_now

REMAINS_GRACE = timedelta(minutes=1)
REMAINS_WINDOW = timedelta(hours=1)
_STATES_NAME = "training_state"

_COUNT = Gauge("millrace_tuning_work_count", "Tuning jobs, by state.", ["state"])


class Jobs(Protocol):
    def count_by_state(self) -> dict[str, int]: ...
    def finished_since(self, time: datetime) -> list[Job]: ...


class Housekeeping:
    """``reconcile`` is called on a timer."""

    def __init__(
        self,
        app: TunerApp,
        jobs: Jobs,
        output_directory: Callable[[Job], Path],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._app = app
        self._jobs = jobs
        self._output_directory = output_directory
        self._now = now

    def reconcile(self) -> None:
        self._count()
        self._remove_states()
        self._app.reconcile()

    def _count(self) -> None:
        counts = self._jobs.count_by_state()
        for state in JobState:
            _COUNT.labels(state).set(counts.get(state, 0))

    def _remove_states(self) -> None:
        """Training states of jobs that ended within the last hour: nothing resumes from them.

        Checkpoints stay, whatever became of their job: facts have named them. A job that was
        told to stop may still be writing, so that a minute passes first.
        """
        now = self._now()
        for job in self._jobs.finished_since(now - REMAINS_WINDOW):
            if job.finish_time is not None and job.finish_time < now - REMAINS_GRACE:
                manifest.remove_tree(self._output_directory(job) / _STATES_NAME)
