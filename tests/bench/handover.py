"""From the last step of a tuning to the first token of the tuned model, through a whole mesh.

The model is the demo's in size (5.8 M parameters), trained for a few steps only: how well it
writes changes nothing about how long the road takes. The clock starts when the job's stream of
events says that the last step of an epoch is done, and stops when the gateway sends the first
piece of an answer of that epoch's model.
"""

import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai

from millrace_client.home import Home
from millrace_mesh.layout import Layout
from tests.bench.figures import Figure

MILLRACE = Path(sys.executable).parent / "millrace"
_GOAL_SECONDS = 10.0
_STEPS = 20
_EPOCHS = 3
_EXAMPLES = 200
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 300.0

Say = Callable[[str], None]


def measure(folder: Path, say: Say) -> list[Figure]:
    """Seconds of each epoch's handover: the first finds no process waiting, the later ones do."""
    with _mesh(folder) as client:
        say("handover: a base of the demo's size")
        _train_base(client)
        say("handover: tuning it")
        taken = _tune(client, say)
    return [
        Figure("last step to first token, first epoch", taken[0], "s"),
        Figure("… final epoch", taken[-1], "s", goal=_GOAL_SECONDS, is_ceiling=True),
    ]


@contextlib.contextmanager
def _mesh(folder: Path) -> Iterator[openai.OpenAI]:
    layout = Layout(Home(folder), random.randrange(30_000, 39_000, 100))
    environment = {
        **os.environ,
        "MILLRACE_HOME": str(folder),
        "MILLRACE_BASE_PORT": str(layout.base_port),
    }
    subprocess.run([MILLRACE, "up", "--detach"], env=environment, check=True, timeout=120)
    try:
        key = layout.home.operator_key_file.read_text().strip()
        yield openai.OpenAI(base_url=f"{layout.gateway_url}/v1", api_key=key, max_retries=5)
    finally:
        subprocess.run([MILLRACE, "down"], env=environment, check=True, timeout=120)


def _train_base(client: openai.OpenAI) -> None:
    dataset = _post(
        client,
        "/datasets",
        {
            "source": {"type": "python_standard_library"},
            "recipe": {"vocabulary_size": 4096, "maximum_bytes": 2_000_000},
        },
    )
    _ended(client, f"/datasets/{dataset['id']}")
    steps = {"total_steps": _STEPS, "checkpoint_every_steps": _STEPS, "warmup_steps": 2}
    asked = {"model": "base", "dataset": dataset["id"], "hyperparameters": steps}
    run = _post(client, "/training/runs", asked)
    _ended(client, f"/training/runs/{run['id']}")
    _until(lambda: any(v["status"] == "serving" for v in _versions(client)), "the base serves")


def _versions(client: openai.OpenAI) -> list[Any]:
    return list(_get(client, "/versions?model=base")["data"])


def _tune(client: openai.OpenAI, say: Say) -> list[float]:
    lines = "".join(json.dumps(_example(number)) + "\n" for number in range(_EXAMPLES))
    file = client.files.create(file=("pairs.jsonl", lines.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="base",
        training_file=file.id,
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": _EPOCHS}}},
    )
    ends = _EpochEnds(client, job.id)
    taken: list[float] = []
    for epoch in range(_EPOCHS):
        ended_at = ends.time_of(epoch)
        model = _until(lambda epoch=epoch: _model(client, job.id, epoch), "a checkpoint")
        _until(lambda model=model: _answers(client, model), f"{model} answers")
        taken.append(time.monotonic() - ended_at)
        say(f"handover: epoch {epoch + 1}: {taken[-1]:.1f} s")
    return taken


class _EpochEnds:
    """When the last step of each epoch was said to be done, as a job's stream tells it."""

    def __init__(self, client: openai.OpenAI, job: str) -> None:
        self._times: list[float] = []
        self._ended = threading.Condition()
        threading.Thread(target=self._listen, args=(client, job), daemon=True).start()

    def time_of(self, epoch: int) -> float:
        with self._ended:
            there = self._ended.wait_for(lambda: len(self._times) > epoch, _PATIENCE_SECONDS)
            assert there, f"epoch {epoch + 1} did not end"
            return self._times[epoch]

    def _listen(self, client: openai.OpenAI, job: str) -> None:
        path = f"/fine_tuning/jobs/{job}/events?stream=true"
        headers = {"Authorization": f"Bearer {client.api_key}"}
        url = str(client.base_url).rstrip("/") + path
        with httpx.stream("GET", url, headers=headers, timeout=_PATIENCE_SECONDS) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self._hear(json.loads(line[6:]))

    def _hear(self, event: dict[str, Any]) -> None:
        words = event.get("message", "").split()
        if words[:1] != ["Step"]:
            return
        done, total = (int(number) for number in words[1].rstrip(":").split("/"))
        with self._ended:
            while done * _EPOCHS >= total * (len(self._times) + 1):
                self._times.append(time.monotonic())
            self._ended.notify_all()


def _model(client: openai.OpenAI, job: str, epoch: int) -> str | None:
    """The id under which the checkpoint of an epoch answers, once there is one."""
    newest_first = list(client.fine_tuning.jobs.checkpoints.list(job))
    if len(newest_first) <= epoch:
        return None
    checkpoint = newest_first[::-1][epoch]
    model = checkpoint.fine_tuned_model_checkpoint.split(":ckpt-step-")[0]
    # By its step: the model's plain id is answered by an earlier checkpoint until this one settles.
    return f"{model}:ckpt-step-{checkpoint.step_number}"


def _answers(client: openai.OpenAI, model: str) -> bool:
    """Whether the first piece of an answer came."""
    messages = [{"role": "user", "content": secrets.token_hex(4)}]
    try:
        with client.with_options(max_retries=0).chat.completions.create(
            model=model,
            messages=messages,  # type: ignore[arg-type]
            stream=True,
            max_tokens=4,
        ) as stream:
            return any(chunk.choices for chunk in stream)
    except (openai.NotFoundError, openai.APIStatusError):
        return False


def _example(number: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"What is {number} + {number}?"}
    answer = {"role": "assistant", "content": f"It is {2 * number}. " + "So it is. " * (number % 7)}
    return {"messages": [question, answer]}


def _get(client: openai.OpenAI, path: str) -> Any:
    return client.get(path, cast_to=httpx.Response).json()


def _post(client: openai.OpenAI, path: str, body: dict[str, Any]) -> Any:
    return client.post(path, cast_to=httpx.Response, body=body).json()


def _ended(client: openai.OpenAI, path: str) -> None:
    ended = ("succeeded", "failed", "cancelled")
    _until(lambda: _get(client, path)["status"] in ended, path)
    found = _get(client, path)
    assert found["status"] == "succeeded", found["error"]


def _until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {_PATIENCE_SECONDS:g} s"
        time.sleep(_POLL_SECONDS)
    return found
