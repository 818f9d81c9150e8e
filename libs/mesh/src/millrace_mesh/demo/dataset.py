"""The dataset: the source of the standard library that the mesh runs on."""

from millrace_client import text
from millrace_client.api import Json
from millrace_mesh.demo.session import Session, require_success

_TIMEOUT_SECONDS = 600.0


def ensure(session: Session) -> Json:
    """The dataset that is asked for, as it stands; training may be asked for at once."""
    body = {
        "source": {"type": "python_standard_library"},
        "display_name": "the Python standard library",
        "recipe": dict(session.plan.recipe),
    }
    return session.ensure(
        lambda request_id: session.api.datasets.create(body, request_id=request_id), "dataset"
    )


def wait(session: Session, dataset: Json) -> Json:
    """Wait until it is built.

    Raises:
        DemoFailed: it failed, or takes too long.
    """

    def ended() -> Json | None:
        found = session.api.datasets.get(dataset["id"])
        session.screen.live(f"dataset {found['status']}: {text.progress(found['progress'])}")
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    found = session.until(ended, "the dataset is built", _TIMEOUT_SECONDS)
    require_success(found, "dataset", "data")
    fates = ", ".join(f"{fate} {count:,}" for fate, count in sorted(found["documents"].items()))
    session.screen.say(f"documents: {fates}")
    session.screen.say(
        f"tokens: {found['train_tokens']:,} to train on, {found['heldout_tokens']:,} held out; "
        f"{text.size(found['content']['size_bytes'])}, {found['content']['digest'][:19]}…"
    )
    return found
