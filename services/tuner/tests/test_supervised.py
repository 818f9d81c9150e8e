"""The job as the service runs it: a subprocess, killed and started again."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuner_builders import conversations, tokenizer, write_base, write_jsonl

from millrace_runtime import manifest
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped, run_job
from millrace_tuner.jobs.metrics import METRICS_NAME

EXAMPLES = 48
EPOCHS = 3
STEPS = 18  # 48 examples less 2 held out, 8 a step, 3 times

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Ground:
    """What all jobs here start from."""

    folder: Path
    spec: dict[str, Any]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("tuner")
    base_digest = write_base(folder / "base")
    training_sha256 = write_jsonl(folder / "train.jsonl", conversations(EXAMPLES))
    spec = {
        "job": "ftjob-1",
        "model": "ft:demo:default:docs:abc123",
        "base_version": "demo@7",
        "base_checkpoint_path": str(folder / "base"),
        "base_checkpoint_digest": base_digest,
        "training_file_path": str(folder / "train.jsonl"),
        "training_file_sha256": training_sha256,
        "hyperparameters": hyperparameters(EPOCHS, maximum_sequence_tokens=256),
        "learning_rate": 1e-2,
        "adapter": {"rank": 8, "alpha": 16, "dropout": 0.1},
        "seed": 7,
        "threads": 1,
    }
    return Ground(folder, spec)


def hyperparameters(epochs: int, **more: Any) -> dict[str, Any]:
    return {"epochs": epochs, "batch_size": 8, "learning_rate_multiplier": 1.0, **more}


def run(
    ground: Ground, output: Path, on_message: Callable[[dict[str, Any]], None], **changes: Any
) -> JobOutcome:
    stop = changes.pop("stop", threading.Event())
    spec = {**ground.spec, "output_directory": str(output), **changes}
    folder = output.with_name(f"{output.name}-job")
    return run_job("millrace_tuner.jobs.supervised", spec, folder, on_message, stop)


@dataclass(frozen=True)
class Finished:
    output: Path
    messages: list[dict[str, Any]]
    result: dict[str, Any]

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        return [m for m in self.messages if m["kind"] == "checkpoint"]


@pytest.fixture(scope="module")
def finished(ground: Ground) -> Finished:
    """A job that nothing disturbed."""
    messages: list[dict[str, Any]] = []
    output = ground.folder / "undisturbed"
    outcome = run(ground, output, messages.append)
    assert isinstance(outcome, JobResult), outcome
    return Finished(output, messages, outcome.fields)


def test_the_model_learns_the_answers(finished: Finished) -> None:
    losses = [checkpoint["valid_loss"] for checkpoint in finished.checkpoints]
    assert finished.result["base_valid"]["valid_loss"] > losses[0] > losses[1] > losses[2]
    assert losses[2] < finished.result["base_valid"]["valid_loss"] - 0.5
    assert finished.result["checkpoint_digest"] == finished.checkpoints[-1]["digest"]
    assert (finished.result["training_examples"], finished.result["heldout_examples"]) == (46, 2)


def test_every_epoch_commits_a_checkpoint_that_says_what_it_is(
    finished: Finished, ground: Ground
) -> None:
    assert [(c["step"], c["epoch"], c["final"]) for c in finished.checkpoints] == [
        (6, 1, False),
        (12, 2, False),
        (18, 3, True),
    ]
    for checkpoint in finished.checkpoints:
        content = manifest.verify(Path(checkpoint["path"]), checkpoint["digest"])
        assert content.size_bytes == checkpoint["size_bytes"]
        metadata = content.metadata
        assert metadata["model"] == "ft:demo:default:docs:abc123"
        assert metadata["parent"] == ground.spec["base_checkpoint_digest"]
        assert metadata["dataset_digest"] == ground.spec["training_file_sha256"]
        assert metadata["tokens_seen"] == checkpoint["trained_tokens"]
    tokens = [checkpoint["trained_tokens"] for checkpoint in finished.checkpoints]
    assert tokens == [tokens[0], 2 * tokens[0], 3 * tokens[0]]
    assert str(ground.folder) not in _texts(finished.output)
    assert not (finished.output / "training_state").exists()


def _texts(output: Path) -> str:
    """All JSON below the checkpoints, where a path of this machine has no business."""
    return "".join(p.read_text() for p in sorted(output.glob("checkpoint-*/**/*.json")))


def test_configuration_tokenizer_and_template_are_the_bases_byte_for_byte(
    finished: Finished, ground: Ground
) -> None:
    base, tuned = ground.folder / "base/model", Path(finished.result["checkpoint_path"]) / "model"
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in tuned.iterdir()} == names | {"README.md"}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    for name in names - {"model.safetensors"}:
        assert (tuned / name).read_bytes() == (base / name).read_bytes()
    assert (tuned / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_the_merged_model_answers_as_base_and_adapter_do(
    finished: Finished, ground: Ground
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    checkpoint = Path(finished.result["checkpoint_path"])
    merged = AutoModelForCausalLM.from_pretrained(checkpoint / "model").eval()
    base = AutoModelForCausalLM.from_pretrained(ground.folder / "base/model")
    token_ids = torch.arange(3, 83).view(4, 20)  # (batch, tokens)
    with torch.no_grad():
        plain = base.eval()(token_ids).logits
        adapted = PeftModel.from_pretrained(base, checkpoint / "adapter").eval()(token_ids).logits
        found = merged(token_ids).logits
    torch.testing.assert_close(found, adapted, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.1


def test_the_heldout_stream_is_of_examples_and_of_none_that_was_trained_on(
    finished: Finished,
) -> None:
    path = Path(finished.result["checkpoint_path"]) / "evaluation/heldout-00000.npy"
    text = tokenizer().decode(np.load(path, allow_pickle=False).tolist())
    documents = text.removesuffix("<|endoftext|>").split("<|endoftext|>")
    rendered = {
        tokenizer().apply_chat_template(example["messages"], tokenize=False)
        for example in conversations(EXAMPLES)
    }
    assert len(documents) == 2
    assert set(documents) <= rendered


def test_what_calibrates_was_trained_on_and_judges_nothing(finished: Finished) -> None:
    checkpoint = Path(finished.result["checkpoint_path"])
    calibrating, judging = (
        set(tokenizer().decode(np.load(checkpoint / name).tolist()).split("<|endoftext|>")[:-1])
        for name in ("calibration/train-00000.npy", "evaluation/heldout-00000.npy")
    )
    rendered = {
        tokenizer().apply_chat_template(example["messages"], tokenize=False)
        for example in conversations(EXAMPLES)
    }
    assert calibrating == rendered - judging


def test_metrics_have_a_line_a_step_and_one_a_validation(finished: Finished) -> None:
    text = Path(finished.result["metrics_path"]).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all({"train_accuracy", "learning_rate"} <= set(line) for line in steps)
    validations = [line for line in lines if "valid_loss" in line]
    assert [(v["step"], v["valid_loss"]) for v in validations] == [
        (c["step"], c["valid_loss"]) for c in finished.checkpoints
    ]


def test_a_finished_job_started_again_only_repeats_what_it_said(
    finished: Finished, ground: Ground
) -> None:
    messages: list[dict[str, Any]] = []
    outcome = run(ground, finished.output, messages.append)
    assert outcome == JobResult(finished.result)
    assert messages == finished.checkpoints


def test_killed_and_stopped_it_goes_on_and_ends_with_the_same_bytes(
    finished: Finished, ground: Ground
) -> None:
    output, trained = ground.folder / "disturbed", []
    stop = threading.Event()

    def stop_at_step_3(message: dict[str, Any]) -> None:
        trained.append(message)
        if message.get("phase") == "train" and message["completed"] == 3:
            stop.set()

    outcome = run(ground, output, stop_at_step_3, stop=stop, state_interval_seconds=0)
    assert isinstance(outcome, JobStopped)
    stopped_at = _steps(trained)[-1]
    assert 3 <= stopped_at < 6
    assert (
        '"reason": "CANCELLED"' not in (output.with_name("disturbed-job") / "job.log").read_text()
    )

    class Killed(Exception):
        """Raised while the job writes: the worker kills it with SIGKILL."""

    again: list[dict[str, Any]] = []

    def kill_at_step_9(message: dict[str, Any]) -> None:
        again.append(message)
        if message.get("phase") == "train" and message["completed"] == 9:
            raise Killed

    with pytest.raises(Killed):
        run(ground, output, kill_at_step_9, state_interval_seconds=0)
    assert _steps(again)[0] == stopped_at + 1  # SIGTERM kept the state of the last step

    messages: list[dict[str, Any]] = []
    outcome = run(ground, output, messages.append)
    assert isinstance(outcome, JobResult), outcome
    assert _steps(messages)[0] in (8, 9, 10)  # SIGKILL may cost the step that was being saved
    assert outcome.fields["checkpoint_digest"] == finished.result["checkpoint_digest"]
    digests = {m["digest"] for m in messages if m["kind"] == "checkpoint"}
    assert digests == {checkpoint["digest"] for checkpoint in finished.checkpoints}
    assert (output / METRICS_NAME).read_text() == (finished.output / METRICS_NAME).read_text()
    assert not list(output.glob(".tmp-*"))


def _steps(messages: list[dict[str, Any]]) -> list[int]:
    return [m["completed"] for m in messages if m.get("phase") == "train"]


def test_a_state_without_its_checkpoint_gives_the_checkpoint(
    finished: Finished, ground: Ground
) -> None:
    """A job killed after it committed the state of an epoch's end, before its checkpoint."""
    output = ground.folder / "between"

    class Killed(Exception):
        """Stands for the kill, as above."""

    def kill_at_checkpoint(message: dict[str, Any]) -> None:
        if message["kind"] == "checkpoint":
            raise Killed

    with pytest.raises(Killed):
        run(ground, output, kill_at_checkpoint)
    shutil.rmtree(output / "checkpoint-00000006")
    messages: list[dict[str, Any]] = []
    run(ground, output, messages.append)
    digests = [m["digest"] for m in messages if m["kind"] == "checkpoint"]
    assert digests == [checkpoint["digest"] for checkpoint in finished.checkpoints]
    assert _steps(messages)[0] == 7


def test_full_fine_tuning_keeps_the_bases_type_and_measures_by_the_validation_file(
    ground: Ground,
) -> None:
    from safetensors import safe_open

    folder = ground.folder
    base_digest = write_base(folder / "base-bfloat16", dtype="bfloat16")
    validation_sha256 = write_jsonl(folder / "validation.jsonl", conversations(60)[-6:])
    messages: list[dict[str, Any]] = []
    outcome = run(
        ground,
        folder / "full",
        messages.append,
        adapter={"kind": "none"},
        base_checkpoint_path=str(folder / "base-bfloat16"),
        base_checkpoint_digest=base_digest,
        validation_file_path=str(folder / "validation.jsonl"),
        validation_file_sha256=validation_sha256,
        hyperparameters=hyperparameters(1),
        learning_rate=3e-3,
    )
    assert isinstance(outcome, JobResult), outcome
    assert outcome.fields["heldout_source"] == "validation_file"
    assert outcome.fields["training_examples"] == EXAMPLES
    assert outcome.fields["heldout_examples"] == 6
    assert outcome.fields["valid"]["valid_loss"] < outcome.fields["base_valid"]["valid_loss"] - 0.5
    checkpoint = Path(outcome.fields["checkpoint_path"])
    assert not (checkpoint / "adapter").exists()
    with safe_open(checkpoint / "model/model.safetensors", "np") as weights:
        types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert types == {"BF16"}


def _failure(ground: Ground, output: Path, **changes: Any) -> JobFailure:
    outcome = run(ground, output, lambda _message: None, **changes)
    assert isinstance(outcome, JobFailure), outcome
    return outcome


def test_a_bad_line_is_named_before_anything_heavy_is_loaded(ground: Ground) -> None:
    bad = [*conversations(3), {"messages": [{"role": "user", "content": "Hi"}]}]
    digest = write_jsonl(ground.folder / "bad.jsonl", bad)
    failure = _failure(
        ground,
        ground.folder / "bad",
        training_file_path=str(ground.folder / "bad.jsonl"),
        training_file_sha256=digest,
    )
    assert failure.reason == "INVALID_EXAMPLE"
    assert "line 4: messages[0].role" in failure.message
    assert (ground.folder / "bad-job/job.log").read_text() == ""  # torch would have warned


@pytest.fixture
def damaged_base(ground: Ground) -> Iterator[Path]:
    copy = ground.folder / "damaged"
    shutil.copytree(ground.folder / "base", copy)
    weights = copy / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    yield copy
    shutil.rmtree(copy)


def test_one_flipped_bit_in_the_base_is_refused(ground: Ground, damaged_base: Path) -> None:
    failure = _failure(
        ground, ground.folder / "from-damaged", base_checkpoint_path=str(damaged_base)
    )
    assert failure.reason == "BASE_CHECKPOINT_INVALID"
    assert "model.safetensors" in failure.message


def test_a_directory_of_another_specification_is_left_alone(
    finished: Finished, ground: Ground
) -> None:
    failure = _failure(ground, finished.output, seed=8)
    assert failure.reason == "OUTPUT_DIRECTORY_IN_USE"


@pytest.mark.parametrize(
    ("changes", "reason", "named"),
    [
        (
            {"hyperparameters": hyperparameters(1, maximum_sequence_tokens=4096)},
            "CONTEXT_TOO_SHORT",
            "512",
        ),
        ({"adapter": {"target_modules": ["lm_head"]}}, "ADAPTER_TARGET_UNKNOWN", "q_proj"),
        (
            {"hyperparameters": hyperparameters(1), "learning_rate": 1e30},
            "TRAINING_DIVERGED",
            "learning rate",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_reason(
    ground: Ground, tmp_path: Path, changes: dict[str, Any], reason: str, named: str
) -> None:
    failure = _failure(ground, tmp_path / "out", **changes)
    assert failure.reason == reason
    assert named in failure.message
