"""What the validating job counts of texts, labelled texts, pairs and a teacher's conversations."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tuner_builders import (
    conversations,
    write_base,
    write_encoder_decoder,
    write_jsonl,
)

from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import validate
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import (
    Classification,
    ContinuedPretraining,
    Distillation,
    Hyperparameters,
    Method,
    SequenceToSequence,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def spec(folder: Path, method: Method, rows: list[Any], **more: Any) -> Spec:
    digest = (write_encoder_decoder if method.kind == "sequence" else write_base)(folder / "base")
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=folder / "base",
        base_checkpoint_digest=digest,
        training_file_path=folder / "train.jsonl",
        training_file_sha256=write_jsonl(folder / "train.jsonl", rows),
        output_directory=folder / "out",
        method=method,
        hyperparameters=Hyperparameters(1, 8, 1.0, maximum_sequence_tokens=16),
        learning_rate=1e-3,
        **more,
    )


def counted(given: Spec) -> dict[str, Any]:
    stream = io.StringIO()
    validate.work(given, Reporter(stream))
    found: dict[str, Any] = json.loads(stream.getvalue().splitlines()[-1])
    return found


def test_a_window_is_an_example(tmp_path: Path) -> None:
    rows = [{"text": "the mill turns and the race runs "} for _ in range(20)]
    found = counted(spec(tmp_path, ContinuedPretraining(replay_fraction=0.0), rows))
    assert found["longest_tokens"] == 16
    assert found["training_tokens"] > 16 * (found["training_examples"] - 1)


def test_replay_that_there_is_no_data_for_is_refused_before_the_job_waits(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        counted(spec(tmp_path, ContinuedPretraining(0.05), [{"text": "the mill"}]))
    assert caught.value.reason == "REPLAY_UNAVAILABLE"


def test_texts_with_labels_are_counted_whole_and_cut(tmp_path: Path) -> None:
    rows = [{"text": f"mill {number} " * (number + 1), "label": number % 2} for number in range(12)]
    found = counted(spec(tmp_path, Classification(), rows))
    assert found["training_examples"] == 12
    assert found["longest_tokens"] == 16
    assert 0 < found["truncated_examples"] < 12


def test_both_sides_of_a_pair_count(tmp_path: Path) -> None:
    rows = [{"source": f"say one {word}", "target": word} for word in ("two", "three")]
    found = counted(spec(tmp_path, SequenceToSequence(), rows))
    assert (found["training_examples"], found["longest_tokens"]) == (2, 6)
    assert found["training_tokens"] == 12


def test_a_teacher_must_be_named(tmp_path: Path) -> None:
    given = spec(tmp_path, Distillation("demo@2"), conversations(10))
    given = given.model_copy(update={"hyperparameters": Hyperparameters(1, 8, 1.0)})
    with pytest.raises(JobError, match="companion_path"):
        counted(given)
    teacher = {
        "companion_path": given.base_checkpoint_path,
        "companion_digest": given.base_checkpoint_digest,
    }
    assert counted(given.model_copy(update=teacher))["training_examples"] == 10


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, millrace_tuner.jobs.validate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "False"
