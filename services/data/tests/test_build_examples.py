"""Datasets of examples: several files of one format, each example once."""

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from data_builders import Parts, conversation, read_jsonl

from millrace_data import convert
from millrace_data.dataset_build import DatasetBuilder
from millrace_data.domain import (
    Dataset,
    ExampleSet,
    FilePurpose,
    FileSet,
    Recipe,
    RequestKey,
    WorkState,
)
from millrace_runtime import manifest, work
from millrace_runtime.errors import InvalidArgument

PREFERENCE = {
    "input": {"messages": [{"role": "user", "content": "a"}]},
    "preferred_output": [{"role": "assistant", "content": "b"}],
    "non_preferred_output": [{"role": "assistant", "content": "c"}],
}


def jsonl(examples: list[Any]) -> bytes:
    return "".join(json.dumps(example) + "\n" for example in examples).encode()


def parquet(tmp_path: Path, examples: list[Any]) -> bytes:
    path = tmp_path / "made.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(examples), path)
    return path.read_bytes()


def uploaded(parts: Parts, content: bytes, purpose: FilePurpose = FilePurpose.FINE_TUNE) -> str:
    return parts.upload(content, purpose=purpose, filename="examples").id


def build(parts: Parts, tmp_path: Path, *files: str) -> Dataset:
    """Make a dataset by the real job, to its end."""
    dataset = parts.create(source=ExampleSet(files))
    builder = DatasetBuilder(
        parts.dataset_store,
        parts.file_store,
        parts.stored,
        parts.content,
        scratch=tmp_path / "scratch",
        threads=1,
        ring=lambda: None,
        run_job=work.run_job,
        now=parts.clock,
    )
    lease = parts.dataset_store.claim()
    assert lease is not None
    builder.perform(lease, threading.Event())
    found = parts.dataset_store.get(dataset.tenant, dataset.id)
    assert found is not None
    return found


def lines_of(parts: Parts, dataset: Dataset) -> list[Any]:
    assert dataset.built is not None, dataset.failure
    content = dataset.built.content
    directory = parts.content.directory(content.uri, content.digest)
    return read_jsonl(directory / "train.jsonl")


def test_shards_become_one_set_of_distinct_examples(parts: Parts, tmp_path: Path) -> None:
    examples = [conversation(number) for number in range(30)]
    first = uploaded(parts, jsonl(examples[:20]))
    second = uploaded(parts, parquet(tmp_path, examples[10:]))
    dataset = build(parts, tmp_path, first, second)
    assert dataset.state == WorkState.SUCCEEDED
    assert dataset.built is not None
    assert dataset.built.documents == {"read": 40, "exact_duplicates": 10, "kept_train": 30}
    assert dataset.built.train_tokens > 0
    found = lines_of(parts, dataset)
    by_text = lambda example: json.dumps(example, sort_keys=True)  # noqa: E731
    assert sorted(found, key=by_text) == sorted(examples, key=by_text)
    shown = convert.dataset_to_proto(dataset)
    assert list(shown.source.examples.names) == [
        f"tenants/acme/files/{id}" for id in (first, second)
    ]
    assert not shown.HasField("recipe")
    assert shown.tokenizer_digest == ""


def test_the_same_examples_give_the_same_bytes(parts: Parts, tmp_path: Path) -> None:
    examples = [conversation(number) for number in range(20)]
    whole = build(parts, tmp_path, uploaded(parts, jsonl(examples)))
    halves = [uploaded(parts, jsonl(part)) for part in (examples[10:], examples[:10])]
    spread = build(parts, tmp_path, *halves)
    digests = []
    for dataset in (whole, spread):
        assert dataset.built is not None
        content = dataset.built.content
        found, _ = manifest.read(parts.content.directory(content.uri, content.digest))
        digests.append([(entry.path, entry.sha256) for entry in found.files])
    assert digests[0] == digests[1]


def test_files_that_do_not_go_together_are_refused(parts: Parts) -> None:
    chats = uploaded(parts, jsonl([conversation(number) for number in range(10)]))
    pairs = uploaded(parts, jsonl([PREFERENCE] * 10))
    notes = uploaded(parts, b"some text", FilePurpose.USER_DATA)
    for files, reason, index in (
        ((chats, pairs), "MIXED_FORMATS", 1),
        ((notes, chats), "FILE_PURPOSE", 0),
        ((chats, "file-0"), "FILE_NOT_FOUND", 1),
    ):
        with pytest.raises(InvalidArgument) as caught:
            parts.create(source=ExampleSet(files))
        assert caught.value.reason == reason
        assert caught.value.field == f"source.examples.names[{index}]"


def test_a_recipe_is_for_documents_alone(parts: Parts) -> None:
    chats = uploaded(parts, jsonl([conversation(number) for number in range(10)]))
    recipe = Recipe(vocabulary_size=1000)
    with pytest.raises(InvalidArgument) as caught:
        parts.datasets.create("acme", "", ExampleSet((chats,)), recipe, RequestKey())
    assert caught.value.field == "recipe"
    parts.datasets.create("acme", "", FileSet((chats,)), recipe, RequestKey())


def test_a_file_that_was_deleted_fails_the_dataset(parts: Parts, tmp_path: Path) -> None:
    chats = uploaded(parts, jsonl([conversation(number) for number in range(10)]))
    parts.create(source=ExampleSet((chats,)))
    parts.files.delete("acme", chats)
    builder = DatasetBuilder(
        parts.dataset_store,
        parts.file_store,
        parts.stored,
        parts.content,
        scratch=tmp_path / "scratch",
        threads=1,
        ring=lambda: None,
        now=parts.clock,
    )
    lease = parts.dataset_store.claim()
    assert lease is not None
    builder.perform(lease, threading.Event())
    found = parts.dataset_store.get("acme", lease.id)
    assert found is not None
    assert found.failure is not None
    assert found.failure.reason == "FILE_NOT_FOUND"
