"""The service's workers: one that validates jobs, and as many that train as are configured."""

from collections.abc import Callable
from functools import partial

from millrace_runtime import work
from millrace_runtime.content import ContentStore
from millrace_runtime.work import Worker
from millrace_tuner.app import Files
from millrace_tuner.attempt import Attempt
from millrace_tuner.settings import TunerSettings
from millrace_tuner.store import JobStore
from millrace_tuner.validation import Unvalidated, Validation


def workers_of(
    settings: TunerSettings,
    jobs: JobStore,
    files: Files,
    content: ContentStore,
    ring_relay: Callable[[], None],
) -> tuple[Attempt, list[Worker]]:
    """What trains, and the workers; none of them runs yet."""
    scratch = settings.scratch_directory / "jobs"
    attempt = Attempt(
        jobs,
        files,
        content,
        scratch=scratch,
        threads=settings.threads,
        mlflow_tracking_uri=settings.mlflow_tracking_uri,
        ring=ring_relay,
        run_job=partial(work.run_job, niceness=settings.niceness),
    )
    trainers = [
        Worker(f"tuner-{number}", jobs, attempt.perform, settings.lease_seconds)
        for number in range(settings.concurrency)
    ]
    validation = Validation(
        jobs, content, scratch=scratch, rings=[ring_relay, *(each.ring for each in trainers)]
    )
    validator = Worker(
        "tuner-validation", Unvalidated(jobs), validation.perform, settings.lease_seconds
    )
    return attempt, [validator, *trainers]
