"""Build a dataset: documents in, a tokenizer and shards of tokens out.

read → normalise → exact duplicates → size and quality → near duplicates → split → tokenizer →
tokens → commit. One source and recipe give one digest, on every run and with any number of
threads. The corpus is held in memory: this job is for what fits there (``maximum_bytes``).

Run as ``python -m millrace_data.jobs.build_dataset SPEC.json``; errors that a user can put
right: FILE_NOT_FOUND, INVALID_FILE, DATASET_TOO_SMALL, OUTPUT_EXISTS, INVALID_SPEC.
"""

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from millrace_data.jobs import corpus, dedup, pack, quality
from millrace_data.jobs import tokenizer as bpe
from millrace_data.jobs.corpus import Document, Source
from millrace_data.jobs.normalize import normalize_document
from millrace_data.row_index import HELDOUT_FILE, TRAIN_FILE, write_index
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.manifest import ManifestError

KIND = "dataset"
HELDOUT_DOCUMENTS = 200  # texts kept in heldout.jsonl, for prompts and reading
_PROGRESS_DOCUMENTS = 100


class Recipe(BaseModel):
    """How documents become tokens; part of the dataset's identity.

    Attributes:
        heldout_fraction: of documents, chosen by their own hash: a document that is held out
            of one dataset is held out of every other with the same or a larger fraction.
        near_duplicate_threshold: Jaccard similarity from which a document is dropped; 1 drops
            only what has the same words.
        maximum_bytes: stop reading the source after this much text; null reads all of it.
        minimum_train_tokens: fewer is an error, DATASET_TOO_SMALL.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary_size: int = Field(4096, ge=bpe.MINIMUM_VOCABULARY_SIZE, le=262_144)
    heldout_fraction: float = Field(0.02, gt=0, lt=0.5)
    near_duplicate_threshold: float = Field(0.8, gt=0, le=1)
    minimum_document_bytes: int = Field(64, ge=1)
    maximum_document_bytes: int = Field(1_000_000, ge=1)
    quality_rules: tuple[quality.RuleName, ...] = quality.RULE_NAMES
    shard_tokens: int = Field(16_777_216, ge=1)
    maximum_bytes: int | None = Field(None, ge=1)
    minimum_train_tokens: int = Field(10_000, ge=1)
    seed: int = Field(0, ge=0)


class Spec(BaseModel):
    """``output_path`` is the directory that the dataset is committed as."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_id: str = Field(min_length=1)
    output_path: Path
    source: Source
    recipe: Recipe = Recipe()  # type: ignore[call-arg]  # every field has a default
    threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)


@dataclass
class Phases:
    """Tells which phase runs, and how long each took."""

    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.reporter.progress(name, 0, 1)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
        self.reporter.progress(name, 1, 1, {"seconds": self.seconds[name]})


def work(spec: Spec, reporter: Reporter) -> None:
    """Build and commit the dataset, or find it committed already; report the result."""
    use_threads(spec.threads)
    sweep(spec.output_path)
    phases = Phases(reporter)
    with phases.phase("describe"):
        identity = {
            "source": corpus.describe(spec.source),
            "recipe": spec.recipe.model_dump(mode="json"),
        }
    digest = committed(spec.output_path, identity) or build(spec, identity, phases)
    report(spec, digest, phases)


def build(spec: Spec, identity: dict[str, Any], phases: Phases) -> str:
    """Make and commit the dataset; return its digest."""
    documents, counts = collect(spec, phases)
    with phases.phase("split"):
        train, heldout = split(documents, spec.recipe)
        counts |= {"kept_train": len(train), "kept_heldout": len(heldout)}
    if not heldout or not train:
        raise too_few_documents(train, heldout, counts, spec.recipe)
    with phases.phase("train_tokenizer"):
        tokenizer = bpe.train(train, spec.recipe.vocabulary_size)
    temporary = manifest.temporary_sibling(spec.output_path)
    try:
        with phases.phase("tokenize"):
            metadata = write(temporary, tokenizer, train, heldout, spec.recipe)
        check_size(metadata, counts, spec.recipe)
        with phases.phase("commit"):
            metadata |= {"documents": counts, **identity}
            return manifest.commit(temporary, spec.output_path, KIND, metadata)
    finally:
        manifest.remove_tree(temporary)


def use_threads(threads: int) -> None:
    """Set how many threads the tokenizers library takes; it reads this once, at first use."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"


def sweep(output_path: Path) -> None:
    """Remove what an earlier, killed run of this job left beside its output."""
    for abandoned in output_path.parent.glob(f"{manifest.TEMPORARY_PREFIX}{output_path.name}-*"):
        manifest.remove_tree(abandoned)


def committed(path: Path, identity: dict[str, Any]) -> str | None:
    """The digest of the dataset at ``path``, checked byte for byte, if it is the one asked for.

    One that is damaged is removed: nobody has heard of it yet, and it can be built again.

    Raises:
        JobError: OUTPUT_EXISTS when it was built from another source or recipe.
    """
    try:
        _, digest = manifest.read(path)
        found = manifest.verify(path, digest)
    except ManifestError as error:
        if path.exists():
            print(f"built again: {error}", file=sys.stderr)
        manifest.remove_tree(path)
        return None
    different = [key for key in identity if found.metadata.get(key) != identity[key]]
    if different:
        raise JobError(
            "OUTPUT_EXISTS",
            f"{path} holds a dataset of another {' and '.join(different)}; choose another path",
        )
    return digest


def collect(spec: Spec, phases: Phases) -> tuple[list[Document], dict[str, Any]]:
    """The documents worth learning from, and how many fell out at each step.

    The counts add up: read = exact_duplicates + near_duplicates + filtered + those returned.
    """
    recipe = spec.recipe
    with phases.phase("read"):
        found = corpus.read(spec.source, recipe.maximum_bytes, recipe.seed)
    with phases.phase("normalize"):
        normal = [normalize_document(document) for document in found.documents]
    with phases.phase("exact_duplicates"):
        distinct = dedup.without_exact_duplicates(normal)
    with phases.phase("quality"), collection_paused():
        good, filtered = keep_good(distinct, recipe)
    with phases.phase("near_duplicates"):
        kept = drop_near_duplicates(good, recipe.near_duplicate_threshold, phases.reporter)
    counts = {
        "read": len(found.documents) + found.unreadable.total(),
        "exact_duplicates": len(normal) - len(distinct),
        "near_duplicates": len(good) - len(kept),
        "filtered": dict(filtered + found.unreadable),
        "reached_maximum_bytes": found.reached_maximum,
    }
    return kept, counts


@contextmanager
def collection_paused() -> Iterator[None]:
    """Without Python's cycle collector, which syntax trees (they have no cycles) call up without
    end: measured, a third of the time of the quality rules."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def keep_good(documents: list[Document], recipe: Recipe) -> tuple[list[Document], Counter[str]]:
    """The documents that no rule rejects, and how many each rule rejected."""
    good: list[Document] = []
    filtered: Counter[str] = Counter()
    for document in documents:
        reason = rejection(document, recipe)
        if reason is None:
            good.append(document)
        else:
            filtered[reason] += 1
    return good, filtered


def rejection(document: Document, recipe: Recipe) -> str | None:
    """Why ``document`` must go, or None."""
    if document.size_bytes < recipe.minimum_document_bytes:
        return "too_small"
    if document.size_bytes > recipe.maximum_document_bytes:
        return "too_large"
    return quality.first_broken_rule(document, recipe.quality_rules)


def drop_near_duplicates(
    documents: list[Document], threshold: float, reporter: Reporter
) -> list[Document]:
    """As ``dedup.without_near_duplicates``, in an order of content, with progress.

    Which of two alike is kept must not depend on where they were read: the order is by hash.
    """

    def progress(completed: int) -> None:
        if completed % _PROGRESS_DOCUMENTS == 0:
            reporter.progress("near_duplicates", completed, len(documents))

    ordered = sorted(documents, key=lambda document: document.sha256)
    return dedup.without_near_duplicates(ordered, threshold, progress)


def split(documents: list[Document], recipe: Recipe) -> tuple[list[Document], list[Document]]:
    """(train, heldout), each in an order drawn from the seed and the documents' hashes."""
    ordered = sorted(documents, key=lambda d: corpus.seeded_order(recipe.seed, d.sha256))
    heldout = [d for d in ordered if is_heldout(d.sha256, recipe.heldout_fraction)]
    train = [d for d in ordered if not is_heldout(d.sha256, recipe.heldout_fraction)]
    return train, heldout


def is_heldout(sha256: str, fraction: float) -> bool:
    """Whether a document with this hash belongs to the held-out part: a stable choice."""
    return int(sha256[:16], 16) < fraction * 2**64


def write(
    directory: Path,
    tokenizer: Tokenizer,
    train: list[Document],
    heldout: list[Document],
    recipe: Recipe,
) -> dict[str, Any]:
    """Write every file of the dataset but its manifest; return what was measured."""
    bpe.save(tokenizer, directory / "tokenizer")
    dtype = bpe.token_dtype(tokenizer.get_vocab_size())
    separator = tokenizer.token_to_id(bpe.END_OF_TEXT)
    tokens: dict[str, int] = {}
    for prefix, documents in (("train", train), ("heldout", heldout)):
        writer = pack.ShardWriter(directory, prefix, dtype, recipe.shard_tokens)
        encoded = bpe.encode(tokenizer, documents)
        tokens[f"{prefix}_tokens"], _ = pack.pack(encoded, separator, writer)
        tokens[f"{prefix}_bytes"] = sum(document.size_bytes for document in documents)
    _write_heldout_texts(directory / "heldout.jsonl", heldout[:HELDOUT_DOCUMENTS])
    hashes = "".join(f"{sha256}\n" for sha256 in sorted(d.sha256 for d in train))
    (directory / "documents-train.txt").write_text(hashes, encoding="ascii")
    # By what users know them by, and not as they were normalised: for recalls.
    write_index(directory / TRAIN_FILE, (document.row_hash for document in train))
    write_index(directory / HELDOUT_FILE, (document.row_hash for document in heldout))
    return {
        "vocabulary_size": tokenizer.get_vocab_size(),
        "tokenizer_digest": manifest.sha256_file(directory / "tokenizer" / "tokenizer.json"),
        **tokens,
    }


def _write_heldout_texts(path: Path, documents: list[Document]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for document in documents:
            row = {"text": document.text, "sha256": document.sha256}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def check_size(metadata: dict[str, Any], counts: dict[str, Any], recipe: Recipe) -> None:
    """
    Raises:
        JobError: DATASET_TOO_SMALL when there are fewer train tokens than the recipe asks.
    """
    if metadata["train_tokens"] < recipe.minimum_train_tokens:
        raise JobError(
            "DATASET_TOO_SMALL",
            f"the source gives {metadata['train_tokens']} train tokens and at least "
            f"{recipe.minimum_train_tokens} are needed (minimum_train_tokens); {fates(counts)}. "
            "Add documents.",
        )


def too_few_documents(
    train: list[Document], heldout: list[Document], counts: dict[str, Any], recipe: Recipe
) -> JobError:
    """What to say when one side of the split is empty."""
    kept = len(train) + len(heldout)
    needed = round(3 / recipe.heldout_fraction)  # 95 % sure to hold one out: (1 - f)**n < 0.05
    side = "held-out" if train else "train"
    return JobError(
        "DATASET_TOO_SMALL",
        f"{kept} documents were kept and none fell into the {side} part; {fates(counts)}. With "
        f"heldout_fraction {recipe.heldout_fraction:g} about {needed} documents are needed: add "
        "documents, or change heldout_fraction.",
    )


def fates(counts: dict[str, Any]) -> str:
    """How many documents were read and why some were left out, in words."""
    parts = [
        f"{counts['exact_duplicates']} exact duplicates",
        f"{counts['near_duplicates']} near duplicates",
        *(f"{count} filtered as {name}" for name, count in sorted(counts["filtered"].items())),
    ]
    return f"of {counts['read']} documents read, {', '.join(parts)}"


def report(spec: Spec, digest: str, phases: Phases) -> None:
    """The job's last word: the digest, what the dataset holds, and the seconds of each phase."""
    found, _ = manifest.read(spec.output_path)
    phases.reporter.report(
        "result",
        dataset_id=spec.dataset_id,
        path=str(spec.output_path),
        digest=digest,
        size_bytes=found.size_bytes,
        metadata=found.metadata,
        seconds=phases.seconds,
    )


if __name__ == "__main__":
    jobs.run("data.build_dataset", Spec, work, lambda spec: spec.output_path)
