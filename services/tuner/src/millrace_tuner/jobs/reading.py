"""The files of a job, read as its method needs them. Nothing heavy is imported."""

import json
from pathlib import Path
from typing import Any

from millrace_examples.prompt_template import template_of
from millrace_examples.prompted import Prompting, makes, read_prompted
from millrace_examples.reading import ExamplesError, Wanted, read
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs.specification import Spec

_NO_CONTEXT_TOKENS = 10**9
_UNTOLD_CONTEXT_TOKENS = 512


def files(spec: Spec, wanted: type[Wanted]) -> tuple[list[Wanted], list[Wanted] | None]:
    """The examples of the training file and, when there is one, the validation file.

    Raises:
        JobError: FILE_MISSING, FILE_CHANGED, WRONG_FORMAT, INVALID_EXAMPLE, EMPTY_FILE,
            INVALID_SPEC.
    """
    training = _read(
        spec, spec.training_file_path, spec.training_file_sha256, wanted, "training file"
    )
    if spec.validation_file_path is None:
        return training, None
    if spec.validation_file_sha256 is None:
        raise JobError("INVALID_SPEC", "validation_file_sha256 must be given with the file's path")
    return training, _read(
        spec, spec.validation_file_path, spec.validation_file_sha256, wanted, "validation file"
    )


def _read(spec: Spec, path: Path, sha256: str, wanted: type[Wanted], purpose: str) -> list[Wanted]:
    try:
        if spec.prompt is not None:
            return _read_prompted(spec, path, sha256, wanted, purpose)
        return read(path, sha256, wanted, purpose, spec.method.kind)
    except ExamplesError as error:
        raise JobError(error.reason, str(error)) from error


def _read_prompted(
    spec: Spec, path: Path, sha256: str, wanted: type[Any], purpose: str
) -> list[Any]:
    """Rows of columns, as the examples that the job's prompt template makes of them."""
    assert spec.prompt is not None
    if not makes(wanted):
        message = f"method {spec.method.kind} does not learn from a prompt's answers"
        raise JobError("INVALID_SPEC", message)
    template = template_of(json.loads(spec.prompt.template))
    prompting = Prompting(template, spec.prompt.completion)
    return read_prompted(path, sha256, wanted, purpose, spec.method.kind, prompting)


def sequence_limit(spec: Spec) -> int:
    """How many tokens an example may have.

    Raises:
        JobError: CONTEXT_TOO_SHORT, when it would be more than the base's context holds.
    """
    context_tokens = _context_tokens(spec.base_checkpoint_path / "model")
    asked = spec.hyperparameters.maximum_sequence_tokens
    if asked > context_tokens:
        message = (
            f"maximum_sequence_tokens is {asked}, but the base model's context holds "
            f"{context_tokens} tokens; lower it"
        )
        raise JobError("CONTEXT_TOO_SHORT", message)
    return asked or context_tokens


def _context_tokens(model_directory: Path) -> int:
    """T5's positions are relative: what it was trained with is told, if at all, by the second or
    the third name."""
    config = json.loads((model_directory / "config.json").read_text())
    path = model_directory / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text()) if path.exists() else {}
    told = (
        config.get("max_position_embeddings"),
        config.get("n_positions"),
        tokenizer.get("model_max_length"),  # "none" is written as 10**30
    )
    known = [int(tokens) for tokens in told if tokens and tokens < _NO_CONTEXT_TOKENS]
    return known[0] if known else _UNTOLD_CONTEXT_TOKENS
