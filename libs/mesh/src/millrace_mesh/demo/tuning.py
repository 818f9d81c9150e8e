"""The fine-tuning job, asked for and followed with the ``openai`` package as it is."""

from typing import Any

from openai.types.fine_tuning import FineTuningJob

from millrace_client.api import Json
from millrace_client.text import progress
from millrace_mesh.demo.session import Session, require_success

_TIMEOUT_SECONDS = 1200.0


def ensure(session: Session, training_file: str) -> Json:
    """The job that is asked for, as it stands."""
    method: Any = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": session.plan.epochs}},
    }

    def create(request_id: str) -> Json:
        job: FineTuningJob = session.client.fine_tuning.jobs.create(
            model=session.plan.model,
            training_file=training_file,
            suffix=session.plan.suffix,
            method=method,
            seed=7,
            extra_headers={"Idempotency-Key": request_id},
        )
        return session.api.tuning_jobs.get(job.id)

    return session.ensure(create, f"tune-{training_file}")


def follow(session: Session, job: Json) -> Json:
    """Follow a job until its model is served.

    Raises:
        DemoFailed: it failed, or takes too long.
    """
    seen: set[str] = set()

    def ended() -> Json | None:
        found = session.api.tuning_jobs.get(job["id"])
        for event in reversed(session.api.tuning_jobs.children(job["id"], "events", 100)):
            if event["id"] not in seen and event["type"] == "message":
                session.screen.say(f"{job['id']}: {event['message']}")
            seen.add(event["id"])
        session.screen.live(f"tuning {found['status']}: {progress(found['progress'])}")
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    found = session.until(ended, "the fine-tuning job ends", _TIMEOUT_SECONDS)
    require_success(found, "fine-tuning job", "tuner")
    return found
