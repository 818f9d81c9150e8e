"""What a job makes of a file; the formats have their tests in libs/examples."""

import json
from pathlib import Path

import pytest
from tuner_builders import conversations, write_jsonl

from millrace_examples.kinds import Conversation
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import reading
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Hyperparameters

USER = {"role": "user", "content": "Hi"}


def read(path: Path, digest: str) -> list[Conversation]:
    """The training file of a job that learns answers."""
    spec = Spec(
        job="ftjob-1",
        model="ft:demo:default::x",
        base_version="demo@1",
        base_checkpoint_path=path.parent,
        base_checkpoint_digest=f"sha256:{0:064}",
        training_file_path=path,
        training_file_sha256=digest,
        output_directory=path.parent,
        hyperparameters=Hyperparameters(1, 1, 1.0),
        learning_rate=1e-3,
    )
    training, validation = reading.files(spec, Conversation)
    assert validation is None
    return training


def test_a_file_names_the_line_at_fault(tmp_path: Path) -> None:
    examples = [*conversations(2), {"messages": [USER]}]
    digest = write_jsonl(tmp_path / "train.jsonl", examples)
    with pytest.raises(JobError, match=r"training file, line 3: messages\[0\]\.role") as caught:
        read(tmp_path / "train.jsonl", digest)
    assert caught.value.reason == "INVALID_EXAMPLE"


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(example) for example in conversations(2)]
    path.write_text(f"\n{lines[0]}\n\n{lines[1]}")
    found = read(path, manifest.sha256_file(path))
    assert [conversation.line for conversation in found] == [2, 4]
    assert found[0].messages == tuple(json.loads(lines[0])["messages"])


def test_a_method_that_learns_from_another_kind_says_so(tmp_path: Path) -> None:
    digest = write_jsonl(tmp_path / "train.jsonl", [{"text": "Once"}])
    with pytest.raises(JobError, match="method supervised needs conversations; ") as caught:
        read(tmp_path / "train.jsonl", digest)
    assert caught.value.reason == "WRONG_FORMAT"


@pytest.mark.parametrize(
    ("content", "digest", "reason"),
    [
        (b"\n\n", None, "EMPTY_FILE"),
        (b"changed", "sha256:" + "0" * 64, "FILE_CHANGED"),
        (None, "sha256:" + "0" * 64, "FILE_MISSING"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, digest: str | None, reason: str
) -> None:
    path = tmp_path / "train.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError) as caught:
        read(path, digest or manifest.sha256_file(path))
    assert caught.value.reason == reason
