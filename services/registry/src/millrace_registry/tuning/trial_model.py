"""A model loaded beside the one that serves, with other settings, that no route leads to."""

import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as client
import tritonclient.grpc.aio as asynchronous
from tritonclient.utils import InferenceServerException

from millrace_registry.domain import Serving
from millrace_registry.repository import ModelRepository, trial_name
from millrace_registry.triton import Triton
from millrace_registry.tuning.load import Answer, AskFailed

_VERSION = 1
_UNLOAD_SECONDS = 60.0
_LOOK_SECONDS = 0.05
# Ids below are special tokens in most vocabularies.
_FIRST_ID = 8


class TrialModel:
    """One at a time: each candidate is unloaded before the next one is loaded."""

    def __init__(
        self, triton: Triton, repository: ModelRepository, model: str, artifact: Path
    ) -> None:
        """``model``: the name on Triton of the model whose artifact it is."""
        self._triton = triton
        self._repository = repository
        self._artifact = artifact
        self.name = trial_name(model)

    def load(self, serving: Serving) -> float:
        """Seconds that it took.

        Raises:
            LoadFailed
            TritonUnavailable
        """
        self.unload()
        started = time.perf_counter()
        self._repository.add_version(self.name, _VERSION, self._artifact)
        self._repository.list_versions(self.name, [_VERSION], serving)
        self._triton.load(self.name)
        return time.perf_counter() - started

    def unload(self) -> None:
        """Take it out and remove its folder; nothing happens when it is not there.

        Raises:
            TritonUnavailable: it is still there; the controller takes it out later.
        """
        if self.is_there():
            self._triton.unload(self.name)
            deadline = time.monotonic() + _UNLOAD_SECONDS
            while self.is_there() and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        self._repository.remove_model(self.name)

    def is_there(self) -> bool:
        """Whether Triton has it, or is about to.

        Raises:
            TritonUnavailable
        """
        index = self._triton.index()
        return any(
            model == self.name and loaded.state != "UNAVAILABLE"
            for (model, _), loaded in index.items()
        )


class TrialEngine:
    """Asks a trial model (``load.Engine``); prompts are random tokens, so that none is cached.

    Args:
        vocabulary: how many token ids there are.
    """

    def __init__(self, triton: asynchronous.InferenceServerClient, model: str, vocabulary: int):
        self._triton = triton
        self._model = model
        self._vocabulary = vocabulary

    async def ask(self, prompt_tokens: int, answer_tokens: int, seed: int) -> Answer:
        """
        Raises:
            AskFailed
        """
        inputs = self._inputs(prompt_tokens, answer_tokens, seed)
        started = time.perf_counter()
        first, tokens = 0.0, 0
        try:
            async for result, error in self._triton.stream_infer(_once(self._model, inputs)):
                if error is not None:
                    raise AskFailed(str(error))
                tokens += int(result.as_numpy("token_count")[0])
                first = first or (time.perf_counter() - started if tokens else 0.0)
        except InferenceServerException as error:
            raise AskFailed(str(error)) from error
        if not tokens:
            raise AskFailed("an answer without tokens")
        return Answer(first, time.perf_counter() - started, tokens)

    def _inputs(self, prompt_tokens: int, answer_tokens: int, seed: int) -> list[Any]:
        draw = random.Random(seed)
        first = min(_FIRST_ID, self._vocabulary - 1)
        ids = [draw.randrange(first, self._vocabulary) for _ in range(prompt_tokens)]
        sampling = {"max_tokens": answer_tokens, "ignore_eos": True, "seed": seed}
        return [_tensor("input_ids", "INT64", np.array(ids, np.int64)), _text("sampling", sampling)]


async def _once(model: str, inputs: Sequence[Any]) -> AsyncIterator[dict[str, Any]]:
    yield {"model_name": model, "model_version": str(_VERSION), "inputs": inputs}


def _tensor(name: str, kind: str, values: Any) -> client.InferInput:
    tensor = client.InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values)
    return tensor


def _text(name: str, document: Any) -> client.InferInput:
    return _tensor(name, "BYTES", np.array([json.dumps(document).encode()], np.object_))
