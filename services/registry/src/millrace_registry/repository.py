"""Triton's model repository on disk: what is written there, and when it may go.

A folder of a version that is loaded must not change (Triton would reload it), and may be
removed once Triton has unloaded it.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from millrace_registry.domain import Interface, Serving
from millrace_registry.engine import engine_of
from millrace_registry.triton_config import (
    EngineSettings,
    engine_files,
    generation_config,
    print_config,
    write_engine,
)
from millrace_runtime.manifest import TEMPORARY_PREFIX

_TRIAL_PREFIX = "_trial."  # no tenant's name begins so
_TRIAL_LOCK = ".trials"
_CONFIGURATION = "config.pbtxt"
_ARTIFACT = "artifact"
_OTHER_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ModelRepository:
    """The folders that one Triton endpoint loads from."""

    def __init__(self, root: Path, settings: EngineSettings) -> None:
        self._root = root.resolve()
        self._root.mkdir(parents=True, exist_ok=True)
        self._settings = settings

    def add_version(self, model: str, version: int, artifact: Path) -> None:
        """Write a version's folder whole: its engine, and a link to the verified artifact.

        One that is not as it would be written is written again, so that nothing else is loaded.
        """
        if self.is_written(model, version, artifact):
            return
        target = self._root / model / str(version)
        # Its own: another registry may be about to lose its lease, and still be writing.
        temporary = self._root / f"{TEMPORARY_PREFIX}{model}-{version}-{uuid.uuid4().hex}"
        self._sweep(model, version)
        try:
            temporary.mkdir(parents=True)
            write_engine(temporary, engine_of(artifact))
            (temporary / _ARTIFACT).symlink_to(artifact.resolve(), target_is_directory=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(target)
            os.rename(temporary, target)
        finally:
            remove(temporary)

    def is_written(self, model: str, version: int, artifact: Path) -> bool:
        """Whether a version's folder is as ``add_version`` would write it."""
        target = self._root / model / str(version)
        return target.is_dir() and is_engine_folder(target, artifact)

    def has_version(self, model: str, version: int) -> bool:
        """Whether there is a folder that the version could be loaded from."""
        return (self._root / model / str(version) / _ARTIFACT).exists()

    def _sweep(self, model: str, version: int) -> None:
        """Remove what a registry left half written that was killed, or has lost its lease."""
        for abandoned in self._root.glob(f"{TEMPORARY_PREFIX}{model}-{version}*"):
            remove(abandoned)

    def is_listed(self, model: str, versions: Sequence[int], serving: Serving = Serving()) -> bool:
        """Whether these versions, and no others, are said to be loaded, and to be run so."""
        text = self._configuration(model, versions, serving)
        return _holds(self._root / model / _CONFIGURATION, text.encode())

    def list_versions(
        self, model: str, versions: Sequence[int], serving: Serving = Serving()
    ) -> bool:
        """Say which versions are to be loaded, and how they run; True when that has changed."""
        if self.is_listed(model, versions, serving):
            return False
        text = self._configuration(model, versions, serving)
        path = self._root / model / _CONFIGURATION
        temporary = path.with_suffix(f".{uuid.uuid4().hex}")
        temporary.write_text(text)
        os.replace(temporary, path)
        return True

    def _configuration(self, model: str, versions: Sequence[int], serving: Serving) -> str:
        return print_config(generation_config(model, sorted(versions), self._settings, serving))

    @contextlib.contextmanager
    def trials(self) -> Iterator[bool]:
        """While it lasts, models on trial are left alone; False: others try theirs already.

        Among all processes that use these folders; the kernel ends it with the process.
        """
        with (self._root / _TRIAL_LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_on_trial(self, model: str) -> bool:
        """Whether ``model`` is one that is tried now (``trial_name``)."""
        if not model.startswith(_TRIAL_PREFIX):
            return False
        with self.trials() as nobody_tries:
            return not nobody_tries

    def models(self) -> list[str]:
        """Names of the models that have a folder."""
        return [path.name for path in self._root.iterdir() if (path / _CONFIGURATION).exists()]

    def versions(self, model: str) -> list[int]:
        """Numbers of the versions that have a folder."""
        folders = (self._root / model).glob("[0-9]*")
        return sorted(int(path.name) for path in folders if path.name.isdecimal())

    def remove_version(self, model: str, version: int) -> None:
        shutil.rmtree(self._root / model / str(version), ignore_errors=True)

    def remove_model(self, model: str) -> None:
        shutil.rmtree(self._root / model, ignore_errors=True)


def trial_name(model: str) -> str:
    """The name on Triton of a model that other settings of ``model`` are tried on."""
    return _TRIAL_PREFIX + model


def is_engine_folder(folder: Path, artifact: Path) -> bool:
    """Whether a version's folder is what ``add_version`` writes for ``artifact``, byte for byte."""
    link = folder / _ARTIFACT
    if not link.is_symlink() or Path(os.readlink(link)) != artifact.resolve():
        return False
    files = engine_files(engine_of(artifact))
    if {path.name for path in folder.iterdir()} != {*files, _ARTIFACT}:
        return False
    return all(_holds(folder / name, content) for name, content in files.items())


def _holds(path: Path, content: bytes) -> bool:
    return not path.is_symlink() and path.is_file() and path.read_bytes() == content


def remove(path: Path) -> None:
    """Remove a folder, a file or a link; nothing happens when it is absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_interface(artifact: Path) -> Interface:
    """What clients must know of a model, from the files of its artifact.

    Raises:
        ValueError, KeyError, OSError: the files are not those of a causal language model.
    """
    config = _json(artifact / "config.json")
    tokenizer = _json(artifact / "tokenizer_config.json")
    template = artifact / "chat_template.jinja"
    return Interface(
        context_length=int(config["max_position_embeddings"]),
        chat_template=(
            template.read_text() if template.exists() else tokenizer.get("chat_template") or ""
        ),
        bos_token=_token(tokenizer.get("bos_token")),
        eos_token=_token(tokenizer.get("eos_token")),
        other_tokens=_other_tokens(tokenizer),
    )


def _json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _other_tokens(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """What transformers hands to chat templates beside the tokens of beginning and end."""
    named = {name: tokenizer.get(name) for name in _OTHER_TOKENS}
    extra = tokenizer.get("extra_special_tokens")  # of newer tokenizers a list, without names
    named |= extra if isinstance(extra, dict) else {}
    return {name: _token(value) for name, value in named.items() if value}


def _token(value: Any) -> str:
    """A special token, which transformers writes as a string or as an object."""
    if isinstance(value, dict):
        return str(value["content"])
    return str(value or "")
