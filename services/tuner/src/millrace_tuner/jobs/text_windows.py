"""From plain text to windows of tokens, and those of the base's own data beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from millrace_examples.kinds import Text
from millrace_examples.rows import Container, container_of
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import base_data, examples, reading
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import ContinuedPretraining

if TYPE_CHECKING:
    from millrace_tuner.jobs.codec import ChatCodec

_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Texts:
    """The texts of a file; ``is_one``: they are the pieces of a single one."""

    texts: Sequence[Text]
    is_one: bool


@dataclass(frozen=True)
class FileTexts:
    """What the files of a job hold."""

    training: Texts
    validation: Texts | None


@dataclass(frozen=True)
class NewWindows:
    """Windows of the new text: to learn, and to measure by."""

    training: Sequence[Example]
    heldout: Sequence[Example]
    heldout_source: str


def read(spec: Spec) -> FileTexts:
    """
    Raises:
        JobError: those of ``reading.files``.
    """
    training, validation = reading.files(spec, Text)
    measured = None
    if validation is not None:
        assert spec.validation_file_path is not None
        measured = Texts(validation, _is_one(spec.validation_file_path))
    return FileTexts(Texts(training, _is_one(spec.training_file_path)), measured)


def _is_one(path: Path) -> bool:
    return container_of(path, wants_text=True) is Container.TEXT


def require_replay(spec: Spec) -> None:
    """Check that there is data of the base's to mix in, if some is wanted.

    Raises:
        JobError: REPLAY_UNAVAILABLE.
    """
    assert isinstance(spec.method, ContinuedPretraining)
    path = spec.base_evaluation_path
    if not spec.method.replay_fraction or (path is not None and any(path.glob("train-*.npy"))):
        return
    message = (
        f"the training data of {spec.base_version} is not known here, so none of it can be mixed "
        "in: models that were tuned keep held-out tokens only. Set replay_fraction to 0, or "
        "tune a version that Millrace has trained"
    )
    raise JobError("REPLAY_UNAVAILABLE", message)


def prepare(
    spec: Spec, texts: FileTexts, codec: "ChatCodec", on_progress: Callable[[int, int], None]
) -> NewWindows:
    """Tokenise the files and cut them into windows.

    Args:
        on_progress: is told how many texts are tokenised, of how many.

    Raises:
        JobError: CONTEXT_TOO_SHORT, END_OF_TEXT_MISSING, TOO_FEW_EXAMPLES.
    """
    limit = reading.sequence_limit(spec)
    learned = cut(tokens(texts.training, codec, on_progress), limit)
    if texts.validation is not None:
        measured = cut(tokens(texts.validation, codec, on_progress), limit)
        return NewWindows(learned, measured, "validation_file")
    if len({window.digest for window in learned}) == 1:
        message = (
            f"the training file holds one distinct window of {limit} tokens, and one is needed "
            "to measure by; lower maximum_sequence_tokens, add text or name a validation file"
        )
        raise JobError("TOO_FEW_EXAMPLES", message)
    return NewWindows(*examples.split(learned), "split")


def tokens(
    given: Texts, codec: "ChatCodec", on_progress: Callable[[int, int], None]
) -> NDArray[np.int32]:
    """The texts one behind the other, an end-of-text after each document; shape (tokens,).

    Raises:
        JobError: END_OF_TEXT_MISSING.
    """
    separator = codec.tokenizer.eos_token_id
    if separator is None:
        message = "the base's tokenizer has no end-of-text token to put between texts; give it one"
        raise JobError("END_OF_TEXT_MISSING", message)
    pieces: list[NDArray[np.int32]] = []
    total = len(given.texts)
    for start in range(0, total, _TEXTS_AT_ONCE):
        batch = [text.text for text in given.texts[start : start + _TEXTS_AT_ONCE]]
        for ids in codec.encode(batch):
            pieces.append(np.asarray(ids, dtype=np.int32))
            if not given.is_one:
                pieces.append(np.array([separator], dtype=np.int32))
        on_progress(start + len(batch), total)
    if given.is_one:
        pieces.append(np.array([separator], dtype=np.int32))
    return np.concatenate(pieces)


def cut(stream: NDArray[np.int32], length: int) -> list[Example]:
    """Windows of ``length`` tokens, none left over: the last may have fewer, though not one."""
    starts = range(0, len(stream), length)
    return [window(stream[start : start + length]) for start in starts if start + 1 < len(stream)]


def window(token_ids: NDArray[np.int32]) -> Example:
    """All tokens are learned, but for the first: nothing precedes it."""
    is_learned = np.arange(len(token_ids)) > 0
    return Example(token_ids, is_learned, was_truncated=False)


def replayed(spec: Spec, new: NewWindows, vocabulary_size: int) -> list[Example]:
    """Windows of the base's training data: ``replay_fraction`` of all tokens of an epoch.

    Raises:
        JobError: BASE_DATA_INVALID, INVALID_SPEC, REPLAY_UNAVAILABLE.
    """
    assert isinstance(spec.method, ContinuedPretraining)
    fraction = spec.method.replay_fraction
    if not fraction:
        return []
    require_replay(spec)
    path = base_data.directory(spec)
    assert path is not None
    length = max(len(window.token_ids) for window in new.training)
    wanted = sum(len(window.token_ids) for window in new.training) * fraction / (1 - fraction)
    count = max(round(wanted / length), 1)
    found = base_data.training_windows(path, length, count, spec.seed)
    if found is None or int(found.max()) >= vocabulary_size:
        what = "no whole window" if found is None else "tokens that the base does not know"
        message = f"the data of {spec.base_version} holds {what}; set replay_fraction to 0"
        raise JobError("REPLAY_UNAVAILABLE", message)
    return [window(row.astype(np.int32)) for row in found]
