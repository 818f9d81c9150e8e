"""Triton's model repository on disk: what is written there, and when it may go.

A folder of a version that is loaded must not change (Triton would reload it), and may be
removed once Triton has unloaded it.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millrace_registry.domain import Interface
from millrace_registry.triton_config import (
    EngineSettings,
    generation_config,
    print_config,
    write_engine,
)
from millrace_runtime.manifest import TEMPORARY_PREFIX

_CONFIGURATION = "config.pbtxt"


class ModelRepository:
    """The folders that one Triton endpoint loads from."""

    def __init__(self, root: Path, settings: EngineSettings) -> None:
        self._root = root.resolve()
        self._root.mkdir(parents=True, exist_ok=True)
        self._settings = settings

    def add_version(self, model: str, version: int, artifact: Path) -> None:
        """Write a version's folder whole: the engine, and a link to the verified artifact."""
        target = self._root / model / str(version)
        if (target / "artifact").exists():
            return
        shutil.rmtree(target, ignore_errors=True)
        temporary = self._root / f"{TEMPORARY_PREFIX}{model}-{version}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_engine(temporary)
        (temporary / "artifact").symlink_to(artifact.resolve(), target_is_directory=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(temporary, target)

    def list_versions(self, model: str, versions: Sequence[int]) -> bool:
        """Say which versions are to be loaded; True when that has changed."""
        text = print_config(generation_config(model, sorted(versions), self._settings))
        path = self._root / model / _CONFIGURATION
        if path.exists() and path.read_text() == text:
            return False
        temporary = path.with_suffix(".new")
        temporary.write_text(text)
        os.replace(temporary, path)
        return True

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
    )


def _json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _token(value: Any) -> str:
    """A special token, which transformers writes as a string or as an object."""
    if isinstance(value, dict):
        return str(value["content"])
    return str(value or "")
