"""Conversations to tune on, made from the standard library: signature and docstring → body.

Every function of the running Python's standard library that has a docstring becomes one line
of OpenAI chat JSONL: the user shows the function's head, the assistant answers with its body.
Both parts are the source as its authors wrote it, moved to the left margin, so that the one
after the other is the function again.

Run as ``python -m millrace_data.jobs.instruction_pairs SPEC.json``. The output directory holds
``train.jsonl`` and ``heldout.jsonl``; errors that a user can put right: TOO_FEW_EXAMPLES,
INVALID_SPEC.
"""

import ast
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from millrace_data.jobs import corpus
from millrace_data.jobs.build_dataset import collection_paused, is_heldout, sweep
from millrace_data.jobs.normalize import normalize_text
from millrace_examples.format import MINIMUM_EXAMPLES
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter

KIND = "instruction-pairs"
_PROGRESS_FILES = 50
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Spec(BaseModel):
    """Lengths are in characters.

    Attributes:
        system_prompt: the first message of every conversation; empty leaves it out.
        maximum_examples: train examples at most, drawn by the hash of their prompt; null for all.
        heldout_fraction: of examples, chosen by the hash of their prompt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_path: Path
    system_prompt: str = "Complete the Python function."
    include_test_package: bool = False
    minimum_docstring_length: int = Field(20, ge=1)
    maximum_prompt_length: int = Field(1200, ge=1)
    minimum_body_length: int = Field(10, ge=1)
    maximum_body_length: int = Field(800, ge=1)
    maximum_examples: int | None = Field(None, ge=MINIMUM_EXAMPLES)
    heldout_fraction: float = Field(0.05, gt=0, lt=0.5)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Pair:
    """``prompt`` (signature and docstring) followed by a newline and ``body`` is a function."""

    prompt: str
    body: str

    @property
    def prompt_sha256(self) -> str:
        return hashlib.sha256(self.prompt.encode("utf-8")).hexdigest()


def work(spec: Spec, reporter: Reporter) -> None:
    """Write and commit the two files, or find them committed already; report the result."""
    sweep(spec.output_path)
    recipe = spec.model_dump(mode="json", exclude={"output_path"})
    if spec.output_path.exists():
        digest = committed(spec.output_path, recipe)
    else:
        digest = build(spec, recipe, reporter)
    report(spec, digest, reporter)


def build(spec: Spec, recipe: dict[str, Any], reporter: Reporter) -> str:
    """Make and commit the pairs; return the digest.

    Raises:
        JobError: TOO_FEW_EXAMPLES.
    """
    with collection_paused():
        pairs, counts = collect(spec, reporter)
    ordered = sorted(pairs, key=lambda pair: corpus.seeded_order(spec.seed, pair.prompt))
    heldout = [p for p in ordered if is_heldout(p.prompt_sha256, spec.heldout_fraction)]
    train = [p for p in ordered if not is_heldout(p.prompt_sha256, spec.heldout_fraction)]
    train = train[: spec.maximum_examples]
    if len(train) < MINIMUM_EXAMPLES:
        raise JobError(
            "TOO_FEW_EXAMPLES",
            f"{len(train)} examples are left to train on and fine-tuning needs at least "
            f"{MINIMUM_EXAMPLES}; allow longer prompts and bodies (left out: {dict(counts)})",
        )
    temporary = manifest.temporary_sibling(spec.output_path)
    try:
        write_jsonl(temporary / "train.jsonl", train, spec.system_prompt)
        write_jsonl(temporary / "heldout.jsonl", heldout, spec.system_prompt)
        examples = {"train": len(train), "heldout": len(heldout)}
        metadata = {"examples": examples, "left_out": dict(counts), "recipe": recipe}
        return manifest.commit(temporary, spec.output_path, KIND, metadata)
    finally:
        manifest.remove_tree(temporary)


def committed(path: Path, recipe: dict[str, Any]) -> str:
    """The digest of the pairs at ``path``, checked byte for byte.

    Raises:
        JobError: OUTPUT_EXISTS when they were made by another recipe.
    """
    found, digest = manifest.read(path)
    if found.metadata.get("recipe") != recipe:
        raise JobError("OUTPUT_EXISTS", f"{path} was made by another recipe; choose another path")
    manifest.verify(path, digest)
    return digest


def collect(spec: Spec, reporter: Reporter) -> tuple[list[Pair], Counter[str]]:
    """The pairs with distinct prompts, and how many functions were left out, by reason."""
    files = corpus.standard_library_files(spec.include_test_package)
    first: dict[str, Pair] = {}
    left_out: Counter[str] = Counter()
    for completed, (_, path) in enumerate(files, start=1):
        for pair in pairs_of(path, left_out):
            reason = rejection(pair, spec)
            if reason is None and pair.prompt in first:
                reason = "duplicate_prompt"
            if reason is None:
                first[pair.prompt] = pair
            else:
                left_out[reason] += 1
        if completed % _PROGRESS_FILES == 0 or completed == len(files):
            reporter.progress("read", completed, len(files))
    return list(first.values()), left_out


def pairs_of(path: Path, left_out: Counter[str]) -> Iterator[Pair]:
    """One pair for each function of a file that has a docstring and a body of its own lines.

    A file that is not UTF-8 or does not parse is counted in ``left_out``.
    """
    try:
        source = normalize_text(path.read_bytes().decode("utf-8"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bad escapes in good files
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # UnicodeDecodeError is a ValueError
        left_out["unparsable_file"] += 1
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, _Function) and ast.get_docstring(node, clean=False):
            pair = function_pair(node, lines)
            if pair is None:
                left_out["no_body"] += 1
            else:
                yield pair


def function_pair(node: _Function, lines: list[str]) -> Pair | None:
    """The head and the body of a function, from the lines of its file.

    None when nothing but the docstring is there, or both share a line.
    """
    docstring = node.body[0]
    assert docstring.end_lineno is not None  # ast.parse always sets it
    if len(node.body) < 2 or node.body[1].lineno <= docstring.end_lineno:
        return None
    head = lines[node.lineno - 1 : docstring.end_lineno]
    body = lines[docstring.end_lineno : node.end_lineno]
    # Not textwrap.dedent: a comment or a line of a string at the margin must not keep the rest.
    indent = " " * node.col_offset
    head = [line.removeprefix(indent) for line in head]
    body = [line.removeprefix(indent) for line in body]
    return Pair("\n".join(head), "\n".join(body).strip("\n"))


def rejection(pair: Pair, spec: Spec) -> str | None:
    """Why ``pair`` is no good example, or None."""
    if len(pair.prompt) > spec.maximum_prompt_length:
        return "prompt_too_long"
    if len(pair.body) > spec.maximum_body_length:
        return "body_too_long"
    statements = pair.body.strip()
    if len(statements) < spec.minimum_body_length or statements.startswith(
        ("pass", "raise NotImplementedError")
    ):
        return "trivial_body"
    function = parsed(pair)
    if function is None:
        return "not_a_function"
    if len(ast.get_docstring(function) or "") < spec.minimum_docstring_length:
        return "docstring_too_short"
    return None


def parsed(pair: Pair) -> _Function | None:
    """The function that head and body make together; None if moving them left broke it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, *more = ast.parse(f"{pair.prompt}\n{pair.body}\n").body
    except SyntaxError:
        return None
    return first if isinstance(first, _Function) and not more else None


def conversation(pair: Pair, system_prompt: str) -> dict[str, list[dict[str, str]]]:
    """One example in OpenAI's chat format."""
    messages = [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": pair.prompt},
        {"role": "assistant", "content": pair.body},
    ]
    return {"messages": messages if system_prompt else messages[1:]}


def write_jsonl(path: Path, pairs: list[Pair], system_prompt: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for pair in pairs:
            stream.write(json.dumps(conversation(pair, system_prompt), ensure_ascii=False) + "\n")


def report(spec: Spec, digest: str, reporter: Reporter) -> None:
    """The job's last word."""
    found, _ = manifest.read(spec.output_path)
    reporter.report(
        "result",
        path=str(spec.output_path),
        digest=digest,
        size_bytes=found.size_bytes,
        metadata=found.metadata,
    )


if __name__ == "__main__":
    jobs.run("data.instruction_pairs", Spec, work)
