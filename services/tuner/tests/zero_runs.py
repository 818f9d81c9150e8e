"""Tunings under ZeRO, one after another: ``python zero_runs.py DIRECTORY``, for ``test_zero.py``.

DeepSpeed and torch.distributed keep state in the process, so none of it runs in the tests' own.
In the directory ``runs.json`` says what is to be tuned, ``results.json`` then what came of it.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from tuner_builders import conversations, tokenizer

from millrace_examples.kinds import Conversation
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint, examples, training, zero
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.supervised_objective import Material, SupervisedObjective
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Adapter, Hyperparameters


class StopAt(TrainerCallback):
    """Notes where training starts, and asks for its end, as SIGTERM does, after a step."""

    def __init__(self, step: int | None, cancellation: Cancellation, starts: list[int]) -> None:
        self._step, self._cancellation, self._starts = step, cancellation, starts

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._starts.append(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._step is not None and state.global_step == self._step - 1:
            self._cancellation.requested = True


def specification(directory: Path, asked: dict[str, Any]) -> Spec:
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=directory / "base",
        base_checkpoint_digest=manifest.read(directory / "base")[1],
        training_file_path=directory / "train.jsonl",
        training_file_sha256=manifest.sha256_file(directory / "train.jsonl"),
        output_directory=directory / asked["name"],
        hyperparameters=Hyperparameters(2, 8, 1.0, zero_stage=asked["stage"], **asked["more"]),
        learning_rate=1e-2,
        adapter=Adapter(**asked["adapter"]),
        threads=1,
    )


def tune(spec: Spec, stop_at: int | None, starts: list[int]) -> Run:
    unset_hf_deepspeed_config()  # an earlier tuning's; a job is alone in its process
    codec = ChatCodec(tokenizer(), ("<|endoftext|>", "<|im_end|>"))
    talks = [Conversation(1, tuple(raw["messages"])) for raw in conversations(20)]
    made = [examples.encode(talk, codec, 512) for talk in talks]
    cancellation = Cancellation()
    objective = SupervisedObjective(codec, Material(made[2:], made[:2], "split", 0, 0))
    run = Run(spec, objective, tokenizer(), Reporter(io.StringIO()), cancellation)
    run.trainer.add_callback(StopAt(stop_at, cancellation, starts))
    try:
        run.train()
    except JobError as error:
        if error.reason != "CANCELLED":
            raise
    return run


def result(spec: Spec, stop_at: int | None) -> dict[str, Any]:
    spec.output_directory.mkdir()
    starts: list[int] = []
    run = tune(spec, stop_at, starts)
    if stop_at is not None:
        run = tune(spec, None, starts)
    final = checkpoint.checkpoints(spec.output_directory, spec.digest)[-1]
    return {
        "starts": starts,
        "is_enabled": run.trainer.is_deepspeed_enabled,
        "losses": [each["loss"] for each in run.trainer.state.log_history if "loss" in each],
        "valid": final.metadata["valid"],
        "files": sorted(str(p.relative_to(final.path)) for p in final.path.rglob("*.*")),
        "checkpoint": str(final.path),
    }


def main(directory: Path) -> None:
    zero._KEPT_ELEMENTS = 0  # the tiny model's weights are to be split as large ones are
    training._MICRO_BATCH_TOKENS = 512  # several passes a step
    results = {}
    for asked in json.loads((directory / "runs.json").read_text()):
        spec = specification(directory, asked)
        results[asked["name"]] = result(spec, asked.get("stop_at"))
    (directory / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
