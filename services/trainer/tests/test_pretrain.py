"""The training job as the service runs it: under torchrun, watched, stopped, killed, resumed."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import CHECKPOINT_STEP, TOTAL_STEPS, VOCABULARY_SIZE, spec_of, write_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from millrace_runtime import manifest, signing
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped, run_job

JOB_MODULE = "millrace_trainer.jobs.launch"


class Killed(Exception):
    """Raised while a job is read, it has ``run_job`` kill the whole of it with SIGKILL."""


@dataclass
class Told:
    """What one job said; ``end_at`` is the step at which ``then`` is done to it."""

    stop: threading.Event = field(default_factory=threading.Event)
    messages: list[dict[str, Any]] = field(default_factory=list)
    kill_at: int = 0
    stop_at: int = 0

    def hear(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        step = message.get("completed", 0)
        if self.kill_at and step >= self.kill_at:
            raise Killed
        if self.stop_at and step >= self.stop_at:
            self.stop.set()

    def losses(self) -> dict[int, float]:
        """The training loss by step."""
        progress = [message for message in self.messages if message.get("phase") == "train"]
        return {message["completed"]: message["metrics"]["loss"] for message in progress}

    def checkpoints(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["kind"] == "checkpoint"]


def run(spec: dict[str, Any], folder: Path, told: Told) -> JobOutcome:
    return run_job(JOB_MODULE, spec, folder, told.hear, told.stop)


@dataclass(frozen=True)
class Finished:
    """A run that nobody disturbed."""

    dataset: tuple[Path, str]
    told: Told
    digest: str

    @property
    def checkpoint(self) -> dict[str, Any]:
        return self.told.checkpoints()[-1]

    @property
    def model(self) -> Path:
        return Path(self.checkpoint["path"]) / "model"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("undisturbed")
    dataset = write_dataset(folder)
    told = Told()
    outcome = run(spec_of(dataset, folder / "output"), folder, told)
    assert isinstance(outcome, JobResult), outcome
    assert outcome.fields["steps"] == TOTAL_STEPS
    return Finished(dataset, told, outcome.fields["digest"])


def test_it_learns_and_tells_of_every_step(undisturbed: Finished) -> None:
    losses = undisturbed.told.losses()
    assert list(losses) == list(range(1, TOTAL_STEPS + 1))
    assert losses[TOTAL_STEPS] < 0.8 * losses[1]
    for message in undisturbed.told.messages:
        if message["kind"] == "progress" and message["phase"] != "start":
            assert (message["phase"], message["total"]) == ("train", TOTAL_STEPS)
            assert 0 < message["metrics"]["model_flops_utilization"] < 1
            assert message["metrics"]["tokens_per_second"] > 0
            assert message["metrics"]["gradient_norm"] > 0


def test_its_checkpoints_are_what_others_can_load(undisturbed: Finished) -> None:
    first, final = undisturbed.told.checkpoints()
    assert (first["step"], first["final"]) == (CHECKPOINT_STEP, False)
    assert (final["step"], final["final"]) == (TOTAL_STEPS, True)
    assert final["tokens_seen"] == TOTAL_STEPS * 8 * 32
    assert final["heldout_loss"] < first["heldout_loss"]
    assert final["digest"] == undisturbed.digest
    content = manifest.verify(Path(final["path"]), final["digest"])
    assert content.size_bytes == final["size_bytes"]
    assert content.metadata["dataset_digest"] == undisturbed.dataset[1]
    assert signing.parents_of(content.metadata) == (undisturbed.dataset[1],)
    tokenizer = undisturbed.dataset[0] / "tokenizer"
    for file in tokenizer.iterdir():
        assert (undisturbed.model / file.name).read_bytes() == file.read_bytes()
    assert {t.dtype for t in load_file(undisturbed.model / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_its_model_says_what_it_learned(undisturbed: Finished) -> None:
    """The data counts upwards, so does the model, with nothing but its directory to go by."""
    model = AutoModelForCausalLM.from_pretrained(undisturbed.model)
    tokenizer = AutoTokenizer.from_pretrained(undisturbed.model)
    assert (len(tokenizer), model.config.vocab_size) == (VOCABULARY_SIZE, VOCABULARY_SIZE)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert sum(p.numel() for p in model.parameters()) == undisturbed.checkpoint["parameters"]
    prompts = torch.arange(3, 243).view(30, 8)  # each counts from another place
    guesses = model(prompts).logits.argmax(-1)  # (30, 8)
    right = (guesses[:, -1] == prompts[:, -1] + 1).float().mean()
    assert right > 0.5


def test_nothing_is_left_but_the_checkpoints(undisturbed: Finished) -> None:
    output = Path(undisturbed.checkpoint["path"]).parent
    assert sorted(path.name for path in output.iterdir()) == [
        "lock",
        "step-00000020",
        "step-00000040",
    ]


def test_told_to_stop_and_then_killed_it_ends_with_the_same_weights(
    undisturbed: Finished, tmp_path: Path
) -> None:
    spec = spec_of(undisturbed.dataset, tmp_path / "output")
    stopped, killed, finished = Told(stop_at=7), Told(kill_at=27), Told()

    assert run(spec, tmp_path, stopped) == JobStopped()
    with pytest.raises(Killed):
        run(spec, tmp_path, killed)
    abandoned = tmp_path / "output" / ".tmp-step-00000040-1"
    (abandoned / "model").mkdir(parents=True)
    outcome = run(spec, tmp_path, finished)

    assert outcome == JobResult({"steps": TOTAL_STEPS, "digest": undisturbed.digest})
    assert min(killed.losses()) == max(stopped.losses()) + 1 > 7  # where it stopped, no earlier
    assert min(finished.losses()) == CHECKPOINT_STEP + 1 <= 27  # from its newest state
    for told in (stopped, killed, finished):
        expected = undisturbed.told.losses()
        assert told.losses() == {step: expected[step] for step in told.losses()}
    digests = [checkpoint["digest"] for checkpoint in undisturbed.told.checkpoints()]
    assert [checkpoint["digest"] for checkpoint in finished.checkpoints()] == digests
    assert not abandoned.exists()


def test_a_finished_run_says_the_same_again(undisturbed: Finished, tmp_path: Path) -> None:
    output = Path(undisturbed.checkpoint["path"]).parent
    told = Told()
    outcome = run(spec_of(undisturbed.dataset, output), tmp_path, told)
    assert outcome == JobResult({"steps": TOTAL_STEPS, "digest": undisturbed.digest})
    assert told.messages[1:] == undisturbed.told.checkpoints()


def test_two_ranks_die_with_their_service_and_train_as_one_does(
    undisturbed: Finished, tmp_path: Path
) -> None:
    spec = spec_of(undisturbed.dataset, tmp_path / "output", hyperparameters={"processes": 2})
    job = service_that_runs(spec, tmp_path, until_step=CHECKPOINT_STEP + 3)
    processes = psutil.Process(job.pid).children(recursive=True)
    ranks = [process for process in processes if "millrace_trainer.jobs.rank" in line(process)]
    assert len([rank for rank in ranks if "torch.distributed.run" not in line(rank)]) == 2
    assert listening(processes) <= {"127.0.0.1"}
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []

    told = Told()
    assert isinstance(run(spec, tmp_path, told), JobResult)
    assert min(told.losses()) > CHECKPOINT_STEP
    # Summed in another order, the same batches give nearly the same.
    final, expected = told.checkpoints()[-1], undisturbed.checkpoint
    assert final["heldout_loss"] == pytest.approx(expected["heldout_loss"], rel=0.02)
    assert final["parameters"] == expected["parameters"]


def service_that_runs(
    spec: dict[str, Any], folder: Path, until_step: int
) -> subprocess.Popen[bytes]:
    """A process that runs the job as a service does, once its job has come to ``until_step``."""
    program = (
        "import json, pathlib, sys, threading\n"
        "from millrace_runtime.work import run_job\n"
        "module, spec, folder = sys.argv[1:]\n"
        "tell = lambda message: print(json.dumps(message), flush=True)\n"
        "run_job(module, json.loads(spec), pathlib.Path(folder), tell, threading.Event())\n"
    )
    arguments = [JOB_MODULE, json.dumps(spec), str(folder)]
    job = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    assert job.stdout is not None
    with job.stdout as lines:
        for text in lines:
            if json.loads(text).get("completed", 0) >= until_step:
                return job
    raise AssertionError((folder / "job.log").read_text())


def line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses at which processes take connections."""
    connections = [c for process in processes for c in process.net_connections()]
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


def broken_copy(checkpoint: Path, folder: Path) -> tuple[Path, str]:
    """The checkpoint with a weight that is no number."""
    target = folder / "initial"
    temporary = manifest.temporary_sibling(target)
    (temporary / "model").mkdir()
    for file in (checkpoint / "model").iterdir():
        (temporary / "model" / file.name).write_bytes(file.read_bytes())
    weights = load_file(temporary / "model" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, temporary / "model" / "model.safetensors", metadata={"format": "pt"})
    return target, manifest.commit(temporary, target, "checkpoint", {})


def test_a_run_that_diverges_says_so_and_reports_no_nonsense(
    undisturbed: Finished, tmp_path: Path
) -> None:
    path, digest = broken_copy(Path(undisturbed.checkpoint["path"]), tmp_path)
    initial = {"initial_checkpoint_path": str(path), "initial_checkpoint_digest": digest}
    told = Told()
    outcome = run(spec_of(undisturbed.dataset, tmp_path / "output", **initial), tmp_path, told)
    assert isinstance(outcome, JobFailure)
    assert outcome.reason == "TRAINING_DIVERGED"
    assert "lower learning_rate (now 0.005)" in outcome.message
    assert [message["phase"] for message in told.messages] == ["start"]
