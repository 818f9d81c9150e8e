import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import conversation, prose, read_jsonl, write_text_jsonl
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from millrace_data.jobs import build_dataset
from millrace_data.jobs.build_dataset import Recipe, Spec, is_heldout, work
from millrace_data.jobs.corpus import Document, InputFile, LocalFiles
from millrace_data.jobs.pack import read_stream
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter

Reported = tuple[Reporter, Callable[[], list[dict[str, Any]]]]
RECIPE = Recipe(vocabulary_size=400, heldout_fraction=0.1, shard_tokens=4000)


@pytest.fixture
def source(tmp_path: Path) -> LocalFiles:
    """60 texts, 2 exact and 1 near duplicate, 2 too small, 20 chats and a source file."""
    texts = [prose(seed) for seed in range(60)]
    texts += [texts[3], texts[4] + "  \r\n", prose(5).replace(".", "!"), "tiny", "small"]
    text_file = write_text_jsonl(tmp_path / "stored-1", texts)
    chat_file = tmp_path / "stored-2"
    chat_file.write_text("".join(json.dumps(conversation(n)) + "\n" for n in range(20)))
    code_file = tmp_path / "code.py"
    code_file.write_bytes(Path(build_dataset.__file__).read_bytes())
    files = [(text_file, "texts.jsonl"), (chat_file, "chats.jsonl"), (code_file, "")]
    return LocalFiles(files=tuple(InputFile(path=path, name=name) for path, name in files))


def build(spec: Spec, reported: Reported) -> dict[str, Any]:
    reporter, lines = reported
    work(spec, reporter)
    return lines()[-1]


def spec_for(tmp_path: Path, source: LocalFiles, recipe: Recipe = RECIPE, name: str = "d") -> Spec:
    return Spec(
        dataset_id="ds-1", output_path=tmp_path / "out" / name, source=source, recipe=recipe
    )


def test_every_document_is_accounted_for(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    result = build(spec_for(tmp_path, source), reporter_lines)
    documents = result["metadata"]["documents"]
    assert documents["read"] == 86
    assert documents["exact_duplicates"] == 2
    assert documents["near_duplicates"] == 1
    assert documents["filtered"] == {"too_small": 2}
    assert documents["kept_train"] + documents["kept_heldout"] == 81
    assert documents["kept_heldout"] > 0


def test_what_is_committed_is_what_the_manifest_says(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    spec = spec_for(tmp_path, source)
    result = build(spec, reporter_lines)
    metadata = manifest.verify(spec.output_path, result["digest"]).metadata
    tokenizer = Tokenizer.from_file(str(spec.output_path / "tokenizer" / "tokenizer.json"))
    assert metadata == result["metadata"]
    assert metadata["vocabulary_size"] == tokenizer.get_vocab_size() == 400
    for part in ("train", "heldout"):
        stream = read_stream(spec.output_path, part)
        assert stream.dtype == np.uint16
        assert stream.size == metadata[f"{part}_tokens"]
        assert np.count_nonzero(stream == 0) == metadata["documents"][f"kept_{part}"]
    assert len(list(spec.output_path.glob("train-*.npy"))) > 1


def test_the_streams_decode_to_the_documents(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    spec = spec_for(tmp_path, source)
    build(spec, reporter_lines)
    tokenizer = Tokenizer.from_file(str(spec.output_path / "tokenizer" / "tokenizer.json"))
    hashes = {}
    for part in ("train", "heldout"):
        stream = read_stream(spec.output_path, part)
        ends = np.flatnonzero(stream == 0)
        pieces = np.split(stream, ends + 1)[:-1]
        texts = [tokenizer.decode(p[:-1].tolist(), skip_special_tokens=False) for p in pieces]
        hashes[part] = [Document("", "prose", (text,)).sha256 for text in texts]
    listed = (spec.output_path / "documents-train.txt").read_text().split()
    rows = read_jsonl(spec.output_path / "heldout.jsonl")
    assert sorted(hashes["train"]) == listed
    assert hashes["heldout"] == [row["sha256"] for row in rows]
    assert [Document("", "prose", (row["text"],)).sha256 for row in rows] == hashes["heldout"]
    assert not set(hashes["train"]) & set(hashes["heldout"])


def test_the_same_input_and_recipe_give_the_same_digest_in_every_process(
    tmp_path: Path, source: LocalFiles
) -> None:
    digests = []
    for threads in (1, 2):
        spec = spec_for(tmp_path, source, name=f"d{threads}").model_copy(
            update={"threads": threads}
        )
        path = tmp_path / f"spec-{threads}.json"
        path.write_text(spec.model_dump_json())
        done = subprocess.run(
            [sys.executable, "-m", "millrace_data.jobs.build_dataset", str(path)],
            env={**os.environ, "PYTHONHASHSEED": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(json.loads(done.stdout.splitlines()[-1])["digest"])
    assert digests[0] == digests[1]


def test_the_order_of_files_does_not_matter_to_what_is_learnt(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    one = spec_for(tmp_path, source, name="one")
    turned = LocalFiles(files=source.files[::-1])
    other = spec_for(tmp_path, turned, name="other")
    build(one, reporter_lines)
    build(other, reporter_lines)
    for part in ("train", "heldout"):
        assert np.array_equal(
            read_stream(one.output_path, part), read_stream(other.output_path, part)
        )


def test_started_again_it_finds_its_work_done_and_sweeps_its_remains(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    spec = spec_for(tmp_path, source)
    first = build(spec, reporter_lines)
    abandoned = manifest.temporary_sibling(spec.output_path)
    stranger = manifest.temporary_sibling(spec.output_path.parent / "another")
    again = build(spec, reporter_lines)
    assert again["digest"] == first["digest"]
    assert "tokenize" not in again["seconds"]
    assert not abandoned.exists()
    assert stranger.exists()


def test_another_recipe_is_not_taken_for_done(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    build(spec_for(tmp_path, source), reporter_lines)
    with pytest.raises(JobError, match="a dataset of another recipe") as raised:
        build(spec_for(tmp_path, source, Recipe(seed=1)), reporter_lines)
    assert raised.value.reason == "OUTPUT_EXISTS"


def test_a_damaged_dataset_is_not_taken_for_done(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    spec = spec_for(tmp_path, source)
    build(spec, reporter_lines)
    _, digest = manifest.read(spec.output_path)
    shard = spec.output_path / "train-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(manifest.ManifestMismatch, match=r"train-00000\.npy"):
        manifest.verify(spec.output_path, digest)
    build(spec, reporter_lines)  # nobody has heard of it yet: it is built again
    manifest.verify(spec.output_path, digest)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            Recipe(vocabulary_size=400, heldout_fraction=0.1, minimum_train_tokens=10**6),
            "train tokens and at least 1000000 are needed",
        ),
        (
            Recipe(vocabulary_size=400, heldout_fraction=1e-9),
            "none fell into the held-out part",
        ),
        (Recipe(minimum_document_bytes=10**6, maximum_document_bytes=10**6), "filtered as too_"),
    ],
)
def test_too_small(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported, recipe: Recipe, expected: str
) -> None:
    spec = spec_for(tmp_path, source, recipe)
    with pytest.raises(JobError, match=expected) as raised:
        build(spec, reporter_lines)
    assert raised.value.reason == "DATASET_TOO_SMALL"
    assert "of 86 documents read" in str(raised.value)
    assert not spec.output_path.exists()
    assert list(spec.output_path.parent.glob(".tmp-*")) == []


def test_progress_names_each_phase(
    tmp_path: Path, source: LocalFiles, reporter_lines: Reported
) -> None:
    result = build(spec_for(tmp_path, source), reporter_lines)
    lines = [line for line in reporter_lines[1]() if line["kind"] == "progress"]
    phases = list(dict.fromkeys(line["phase"] for line in lines))
    assert phases == list(result["seconds"])
    assert all(line["completed"] <= line["total"] for line in lines)


def test_a_mistake_in_the_spec_is_said_on_stdout(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"dataset_id": "d", "output_path": "x", "source": {"kind": "web"}}')
    done = subprocess.run(
        [sys.executable, "-m", "millrace_data.jobs.build_dataset", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert (last["kind"], last["reason"]) == ("error", "INVALID_SPEC")
    assert "source" in last["message"]


SHA256 = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(SHA256, st.floats(0.001, 0.49), st.floats(0.001, 0.49))
def test_a_held_out_document_stays_held_out(sha256: str, one: float, other: float) -> None:
    """The choice depends on the document alone and grows with the fraction."""
    smaller, larger = sorted((one, other))
    if is_heldout(sha256, smaller):
        assert is_heldout(sha256, larger)


@given(st.lists(st.text(min_size=1), unique=True), st.integers(0, 3))
def test_the_split_is_disjoint_complete_and_stable(texts: list[str], seed: int) -> None:
    documents = [Document("here", "prose", (text,)) for text in texts]
    recipe = Recipe(heldout_fraction=0.3, seed=seed)
    train, heldout = build_dataset.split(documents, recipe)
    assert sorted(d.sha256 for d in (*train, *heldout)) == sorted(d.sha256 for d in documents)
    assert not {d.sha256 for d in train} & {d.sha256 for d in heldout}
    assert build_dataset.split(documents[::-1], recipe) == (train, heldout)
    fewer, _ = build_dataset.split(documents[1:], recipe)
    assert {d.sha256 for d in fewer} <= {d.sha256 for d in train}


def test_the_share_held_out_is_the_fraction_asked_for() -> None:
    hashes = [Document("", "prose", (str(n),)).sha256 for n in range(20_000)]
    share = sum(is_heldout(sha256, 0.02) for sha256 in hashes) / len(hashes)
    assert share == pytest.approx(0.02, abs=0.003)
