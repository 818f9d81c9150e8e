"""Which files and datasets hold a row: by its hash, whatever has become of them."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from data_builders import Parts, chat_jsonl, conversation, prose
from sqlalchemy import delete

from millrace.data.v1 import rows_pb2 as pb
from millrace.data.v1.rows_pb2_grpc import RowServiceStub
from millrace_data.dataset_build import DatasetBuilder
from millrace_data.domain import (
    Dataset,
    DatasetSource,
    ExampleSet,
    FilePurpose,
    FileSet,
    Recipe,
    RequestKey,
    WorkState,
)
from millrace_data.row_api import RowServicer
from millrace_data.row_search import Found
from millrace_data.schema import ROW_INDEXES
from millrace_examples.row_hash import row_hash, spelled
from millrace_runtime.channel import call, open_channel
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.interceptors import ServiceInterceptor

ACME = "tenants/acme"


def build(parts: Parts, tmp_path: Path, source: DatasetSource, recipe: Recipe) -> Dataset:
    """Make a dataset by the real job, to its end."""
    dataset = parts.datasets.create("acme", "a corpus", source, recipe, RequestKey())
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
    found = parts.datasets.get("acme", dataset.id)
    assert found.state == WorkState.SUCCEEDED, found.failure
    return found


def find(parts: Parts, *rows: dict[str, Any] | str, tenant: str = "acme") -> Found:
    return parts.search.find(tenant, [row_hash(row) for row in rows])


def held(found: Found) -> list[tuple[str, bool]]:
    return [(holder.name, holder.is_heldout) for holder in found.holders]


def test_every_row_of_a_file_is_found_and_no_other(parts: Parts) -> None:
    file = parts.upload(chat_jsonl(), purpose=FilePurpose.FINE_TUNE, filename="a.jsonl")
    for number in range(10):
        assert held(find(parts, conversation(number))) == [(file.name, False)]
    assert held(find(parts, conversation(10))) == []
    assert held(find(parts, conversation(0), tenant="umbrella")) == []


def test_the_rows_of_a_deleted_file_are_still_found(parts: Parts) -> None:
    file = parts.upload(chat_jsonl(), purpose=FilePurpose.FINE_TUNE, filename="a.jsonl")
    parts.files.delete("acme", file.id)
    assert parts.stored_files() == []
    assert held(find(parts, conversation(3))) == [(file.name, False)]


def test_a_file_of_before_is_indexed_when_it_is_asked_for(parts: Parts) -> None:
    file = parts.upload(chat_jsonl(), purpose=FilePurpose.FINE_TUNE, filename="a.jsonl")
    forget_indexes(parts)
    assert held(find(parts, conversation(3))) == [(file.name, False)]
    forget_indexes(parts)
    parts.files.delete("acme", file.id)
    assert find(parts, conversation(3)).unindexed == (file.name,)


def forget_indexes(parts: Parts) -> None:
    with parts.database.transaction() as connection:
        connection.execute(delete(ROW_INDEXES))


def test_a_dataset_lists_what_is_learnt_and_what_is_held_out(parts: Parts, tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(60)]
    rows = [{"text": text, "source": "here"} for text in texts]
    short, variant = {"text": "too short"}, {"text": texts[0].replace("\n", "\r\n")}
    lines = [*rows, rows[1], short, variant]
    content = "".join(json.dumps(row) + "\n" for row in lines).encode()
    file = parts.upload(content, filename="corpus.jsonl")
    recipe = Recipe(vocabulary_size=400, heldout_fraction=0.2)
    dataset = build(parts, tmp_path, FileSet((file.id,)), recipe)
    assert dataset.built is not None
    counts = dataset.built.documents
    # Files that nobody can tune on are no holders: what was read of them is in the dataset.
    places = [held(find(parts, row)) for row in rows]
    assert all(len(place) == 1 for place in places)
    assert places.count([(dataset.name, True)]) == counts["kept_heldout"] > 0
    assert places.count([(dataset.name, False)]) == counts["kept_train"]
    assert held(find(parts, texts[5])) == places[5]
    for left_out in (short, variant):
        assert held(find(parts, left_out)) == []
    by_file = parts.search.find("acme", [], file.id)
    assert by_file.row_count == 62
    for only in ([dataset.name], [dataset.name.replace("acme", "umbrella")]):
        found = parts.search.find("acme", [], file.id, only=only)
        assert {holder.name for holder in found.holders} == {*only} & {dataset.name}
    assert sum(len(holder.hashes) for holder in by_file.holders) == 60


def test_a_dataset_of_examples_lists_them(parts: Parts, tmp_path: Path) -> None:
    file = parts.upload(chat_jsonl(), purpose=FilePurpose.FINE_TUNE, filename="a.jsonl")
    dataset = build(parts, tmp_path, ExampleSet((file.id,)), Recipe())
    assert held(find(parts, conversation(1))) == [(file.name, False), (dataset.name, False)]
    assert dataset.built is not None
    path = parts.content.directory(dataset.built.content.uri, dataset.built.content.digest)
    (path / "rows-train.sha256").write_bytes(b"damaged")
    found = find(parts, conversation(1))
    assert held(found) == [(file.name, False)]
    assert found.unindexed == (dataset.name,)


@pytest.mark.parametrize(
    ("file", "reason"), [("", ""), ("file-0", "FILE_NOT_FOUND"), ("broken", "INVALID_FILE")]
)
def test_what_cannot_be_looked_for(parts: Parts, file: str, reason: str) -> None:
    if file == "broken":
        file = parts.upload(b'{"a": 1}\n{"a":', filename="a.jsonl").id
    with pytest.raises(InvalidArgument) as caught:
        parts.search.find("acme", [], file)
    assert caught.value.reason == (reason or "INVALID_ARGUMENT")
    assert list(parts.content.working_path("rows/any").parent.iterdir()) == []


def test_an_index_that_was_never_finished_is_swept(parts: Parts) -> None:
    folder = parts.content.working_path("rows/any").parent
    (folder / ".tmp-a").write_bytes(b"half")
    (folder / ".tmp-rows").mkdir()
    parts.rows.sweep(3600)
    assert len(list(folder.iterdir())) == 2
    parts.rows.sweep(-1)
    assert list(folder.iterdir()) == []


@pytest.fixture
def stub(parts: Parts) -> Iterator[RowServiceStub]:
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[ServiceInterceptor(None)])
    RowServicer(parts.search).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield RowServiceStub(channel)
    channel.close()
    server.stop(None).wait()


def test_rows_over_the_wire(stub: RowServiceStub, parts: Parts) -> None:
    file = parts.upload(chat_jsonl(), purpose=FilePurpose.FINE_TUNE, filename="a.jsonl")
    hash = spelled(row_hash(conversation(2)))
    found = call(stub.FindRows, pb.FindRowsRequest(parent=ACME, hashes=[hash, hash]))
    assert found.row_count == 1
    expected = pb.RowHolder(name=file.name, digest=file.content.digest, row_count=1, hashes=[hash])
    assert list(found.holders) == [expected]
    (whole,) = call(stub.FindRows, pb.FindRowsRequest(parent=ACME, file=file.name)).holders
    assert whole.row_count == 10
    for name, holders in ((file.name, [expected]), (f"{ACME}/datasets/other", [])):
        request = pb.FindRowsRequest(parent=ACME, hashes=[hash], names=[name])
        assert list(call(stub.FindRows, request).holders) == holders
    with pytest.raises(InvalidArgument):
        request = pb.FindRowsRequest(parent=ACME, hashes=[hash], names=[f"{ACME}/models/demo"])
        call(stub.FindRows, request)
    with pytest.raises(InvalidArgument):
        call(stub.FindRows, pb.FindRowsRequest(parent=ACME, hashes=["sha256:12"]))
