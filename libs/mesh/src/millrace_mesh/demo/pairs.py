"""Conversations to tune on: signature and docstring, then the body, of the standard library."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from millrace_mesh.demo.screen import DemoFailed
from millrace_mesh.demo.session import Session

_JOB = "millrace_data.jobs.instruction_pairs"
_TIMEOUT_SECONDS = 300.0
_MAXIMUM_PROMPT_LENGTH = 300
_MAXIMUM_BODY_LENGTH = 300


@dataclass(frozen=True)
class Pairs:
    """Two files in OpenAI's chat format, and one question of the second."""

    train: Path
    heldout: Path

    @property
    def question(self) -> str:
        """A signature with its docstring that the model was not tuned on."""
        messages = json.loads(self.heldout.read_text().splitlines()[0])["messages"]
        return str(next(m["content"] for m in messages if m["role"] == "user"))


def ensure(session: Session) -> Pairs:
    """Make the files, or find them made.

    Raises:
        DemoFailed: with the job's own reason.
    """
    directory = session.layout.home.scratch / "demo"
    directory.mkdir(parents=True, exist_ok=True)
    output = directory / f"pairs-{session.plan.digest}"
    spec = {
        "output_path": str(output),
        "maximum_examples": session.plan.examples,
        "maximum_prompt_length": _MAXIMUM_PROMPT_LENGTH,
        "maximum_body_length": _MAXIMUM_BODY_LENGTH,
    }
    path = directory / f"pairs-{session.plan.digest}.json"
    path.write_text(json.dumps(spec))
    last = _run(session, path)
    if last.get("kind") != "result":
        raise DemoFailed(f"{_JOB}: {last.get('reason')}: {last.get('message')}")
    examples = last["metadata"]["examples"]  # type: ignore[index]
    session.screen.say(f"pairs of signature and body: {examples}")
    return Pairs(output / "train.jsonl", output / "heldout.jsonl")


def upload(session: Session, path: Path) -> str:
    """Upload with the ``openai`` client; what was uploaded before is found again. Its id."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        uploaded = session.client.files.create(
            file=file,
            purpose="fine-tune",
            extra_headers={"Idempotency-Key": f"demo-pairs-{digest}"},
        )
    session.screen.say(f"uploaded {path.name}: {uploaded.id}, {uploaded.bytes:,} bytes")
    return uploaded.id


def _run(session: Session, spec: Path) -> dict[str, object]:
    """The job's last line."""
    session.screen.live("reading functions of the standard library")
    # MKL and its kin would otherwise start a thread a core beside whatever works meanwhile.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", _JOB, str(spec)],
        capture_output=True,
        env=environment,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    lines = process.stdout.splitlines()
    if not lines:
        raise DemoFailed(
            f"{_JOB} ended with {process.returncode}: {process.stderr.decode()[-500:]}"
        )
    last: dict[str, object] = json.loads(lines[-1])
    return last
