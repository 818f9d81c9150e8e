"""Triton and its model repository, in the hands of whoever holds the lease right now.

Triton knows no epochs: it obeys whoever has its key. So the lease is looked at right before each
change. What is left is a registry that is stopped between that look and the change: the next look
of the registry that took over finds the difference, and puts it right.

LeaseLost   raised by every change once another registry has taken over; nothing was changed
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from millrace_registry.domain import Serving
from millrace_registry.repository import ModelRepository
from millrace_registry.triton import Loaded
from millrace_runtime.parity import Scores


class ModelControl(Protocol):
    """One Triton endpoint (``triton.Triton``)."""

    def index(self) -> Mapping[tuple[str, int], Loaded]: ...
    def load(self, model: str) -> None: ...
    def unload(self, model: str) -> None: ...
    def ask(self, model: str, version: int, prompt: str) -> str: ...
    def score(self, model: str, version: int, token_ids: Sequence[int]) -> Scores: ...
    def score_last(self, model: str, version: int, token_ids: Sequence[int]) -> float | None: ...
    def answer(self, model: str, version: int, token_ids: Sequence[int], limit: int) -> int: ...


class GuardedTriton:
    """``require`` raises LeaseLost unless the lease is ours, and extends it."""

    def __init__(self, triton: ModelControl, require: Callable[[], None]) -> None:
        self._triton = triton
        self._require = require
        self.index = triton.index
        self.ask = triton.ask
        self.score = triton.score
        self.score_last = triton.score_last
        self.answer = triton.answer

    def load(self, model: str) -> None:
        self._require()
        self._triton.load(model)

    def unload(self, model: str) -> None:
        self._require()
        self._triton.unload(model)


class GuardedRepository:
    """As ``GuardedTriton``, for the folders that Triton loads from."""

    def __init__(self, repository: ModelRepository, require: Callable[[], None]) -> None:
        self._repository = repository
        self._require = require
        self.is_listed = repository.is_listed
        self.has_version = repository.has_version
        self._is_written = repository.is_written
        self.models = repository.models
        self.is_on_trial = repository.is_on_trial
        self.versions = repository.versions

    def add_version(self, model: str, version: int, artifact: Path) -> None:
        if not self._is_written(model, version, artifact):
            self._require()
            self._repository.add_version(model, version, artifact)

    def list_versions(self, model: str, versions: Sequence[int], serving: Serving) -> bool:
        if self.is_listed(model, versions, serving):
            return False
        self._require()
        return self._repository.list_versions(model, versions, serving)

    def remove_version(self, model: str, version: int) -> None:
        self._require()
        self._repository.remove_version(model, version)

    def remove_model(self, model: str) -> None:
        self._require()
        self._repository.remove_model(model)
