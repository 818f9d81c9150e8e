"""What is served: which version, and what it says."""

import textwrap

from millrace_client.api import Json
from millrace_mesh.demo.screen import DemoFailed
from millrace_mesh.demo.session import Session

_TIMEOUT_SECONDS = 300.0
_PROMPT = "def read_lines(path):\n"
_GREETING_TOKENS = 24
_GREETING_WIDTH = 80


def version(session: Session, model: str) -> int:
    """The version that gets most of a model's requests; 0 when none does."""
    shares = {
        served["version"]: served["share"]
        for found in session.api.models.list()
        if found["id"] == model
        for served in found["versions"]
    }
    return max(shares, key=lambda number: (shares[number], number)) if shares else 0


def greeting(session: Session, model: str) -> str:
    """The first words of the version that took over, streamed by the ``openai`` client."""
    stream = session.client.completions.create(
        model=model,
        prompt=_PROMPT,
        max_tokens=_GREETING_TOKENS,
        temperature=0,
        stream=True,
    )
    said = "".join(choice.text for chunk in stream for choice in chunk.choices)
    shown = textwrap.shorten(said, _GREETING_WIDTH, placeholder=" …") or "nothing but white space"
    return f"{model}@{version(session, model)} goes on from {_PROMPT!r}: {shown}"


def wait_for_checkpoint(session: Session, checkpoint: str, model: str, note: str = "") -> Json:
    """Wait until what was made of a checkpoint serves all requests; return the version.

    Raises:
        DemoFailed: its artifact was rejected or failed, its rollout reversed, or it takes long.
    """

    def settled() -> Json | None:
        _require_passed(session, checkpoint, model)
        for found in session.api.versions.list(model=model):
            if found["checkpoint"] == checkpoint:
                session.screen.live(f"{found['id']} {found['status']}  {note}")
                _require_not_reversed(session, found)
                return found if found["status"] == "serving" else None
        return None

    return session.until(settled, f"{model}'s checkpoint {checkpoint} is served", _TIMEOUT_SECONDS)


def wait_until_loaded(session: Session, model: str) -> None:
    """Wait until the gateway has a route, as after a restart of everything.

    Raises:
        DemoFailed: it takes too long.
    """
    session.until(
        lambda: version(session, model) or None, f"{model} can be asked", _TIMEOUT_SECONDS
    )


def _require_passed(session: Session, checkpoint: str, model: str) -> None:
    for found in session.api.compressions.list(model=model):
        if found["checkpoint"] != checkpoint:
            continue
        if found["status"] == "failed":
            error = found["error"]
            raise DemoFailed(f"compression {found['id']}: {error['code']}: {error['message']}")
        verdict = found["verdict"]
        if found["status"] == "succeeded" and verdict and not verdict["passed"]:
            raise DemoFailed(f"the gate rejected {checkpoint}: {'; '.join(verdict['reasons'])}")


def _require_not_reversed(session: Session, found: Json) -> None:
    for rollout in session.api.rollouts.list(model=found["model"]):
        if rollout["to_version"] == found["version"] and rollout["status"] == "reversed":
            raise DemoFailed(f"the rollout of {found['id']} was reversed: {rollout['reason']}")
