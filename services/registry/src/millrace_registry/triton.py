"""Triton, as the registry uses it: the only code that loads and unloads models.

TritonUnavailable   the server does not answer; look again later
LoadFailed          a model's versions could not all be loaded; the message is Triton's
NotScored           a version gave no log-probabilities; the message says why
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

_PROBE_SECONDS = 20.0
_LOAD_SECONDS = 120.0
_CALL_SECONDS = 5.0
_CONTROL_HEADER = "triton-grpc-protocol-millrace-control"
_PROBE_TOKENS = 2
_CERTAIN = 100  # a bias that leaves no other token a chance


class TritonUnavailable(Exception):
    """The server does not answer."""


class LoadFailed(Exception):
    """What Triton said about a load that failed."""


class NotScored(Exception):
    """Why there are no log-probabilities."""


_Answers = list[tuple[client.InferResult | None, InferenceServerException | None]]


@dataclass(frozen=True)
class Loaded:
    """One version as Triton's index has it; ``state`` READY, LOADING, UNLOADING, UNAVAILABLE."""

    state: str
    reason: str


class Triton:
    """One endpoint's model control and questions to versions, those from several threads."""

    def __init__(self, address: str, control_key: str | None) -> None:
        self._address = address
        self._headers = {_CONTROL_HEADER: control_key} if control_key else {}
        self._client = client.InferenceServerClient(address)
        self._of_thread = threading.local()

    def index(self) -> Mapping[tuple[str, int], Loaded]:
        """Every version that Triton knows, by (model, number).

        Raises:
            TritonUnavailable
        """
        try:
            response = self._client.get_model_repository_index(
                headers=self._headers, client_timeout=_CALL_SECONDS
            )
        except (InferenceServerException, grpc.RpcError) as error:
            raise TritonUnavailable(f"{self._address}: {error}") from error
        return {
            (entry.name, int(entry.version)): Loaded(entry.state, entry.reason)
            for entry in response.models
            if entry.version
        }

    def load(self, model: str) -> None:
        """Bring what runs to what the model's folder and configuration say; returns when ready.

        Versions that have not changed go on as they are; those no longer listed are drained.

        Raises:
            LoadFailed: at least one version failed; the others are as they should be.
            TritonUnavailable
        """
        try:
            self._client.load_model(model, headers=self._headers, client_timeout=_LOAD_SECONDS)
        except InferenceServerException as error:
            if _is_unreachable(error):
                raise TritonUnavailable(f"{self._address}: {error}") from error
            raise LoadFailed(str(error.message())) from error

    def unload(self, model: str) -> None:
        """Take all versions of a model out, once their streams have ended.

        Raises:
            TritonUnavailable
        """
        try:
            self._client.unload_model(model, headers=self._headers, client_timeout=_CALL_SECONDS)
        except InferenceServerException as error:
            raise TritonUnavailable(f"{self._address}: {error}") from error

    def ask(self, model: str, version: int, prompt: str) -> str:
        """Have a version generate two tokens, greedily; empty when it did, else why it did not.

        Triton says READY of models that cannot answer, so ready means this.
        """
        sampling = {"max_tokens": _PROBE_TOKENS, "temperature": 0}
        return _verdict(self._infer(model, version, _text_input("prompt", prompt), sampling))

    def score(self, model: str, version: int, token_ids: Sequence[int]) -> list[float | None]:
        """Natural log-probability of each token after the first; None for minus infinity.

        Raises:
            NotScored
        """
        sampling = {"max_tokens": 0, "prompt_logprobs": True, "logprobs": 0}
        answers = self._infer(model, version, _ids_input(token_ids), sampling)
        return [entry["logprob"] for entry in _entries(answers, "prompt_logprobs")][1:]

    def score_last(self, model: str, version: int, token_ids: Sequence[int]) -> float | None:
        """The same of the last token alone, from any engine: it is made to generate it.

        Raises:
            NotScored
        """
        bias = {str(token_ids[-1]): _CERTAIN}
        sampling = {"max_tokens": 1, "temperature": 0, "logprobs": 0, "logit_bias": bias}
        answers = self._infer(model, version, _ids_input(token_ids[:-1]), sampling)
        entry = _entries(answers, "logprobs")[0]
        if entry["id"] != token_ids[-1]:
            raise NotScored(f"it generated the token {entry['id']}, not {token_ids[-1]}")
        found: float | None = entry["logprob"]
        return found

    def answer(self, model: str, version: int, token_ids: Sequence[int], limit: int) -> int:
        """Have a version answer greedily, in at most ``limit`` tokens.

        Returns:
            How many there were, but for the one that ends an answer; 0 when there is no text.

        Raises:
            NotScored: it broke off, or did not begin.
        """
        sampling = {"max_tokens": limit, "temperature": 0}
        return _answer_tokens(self._infer(model, version, _ids_input(token_ids), sampling))

    def _infer(
        self, model: str, version: int, prompt: client.InferInput, sampling: Mapping[str, Any]
    ) -> _Answers:
        """All responses to one request; the last may be why there are no more."""
        inputs = [prompt, _text_input("sampling", json.dumps(sampling))]
        answers: _Answers = []
        asking = self._asking()
        try:
            asking.start_stream(
                lambda result, error: answers.append((result, error)),
                stream_timeout=_PROBE_SECONDS,
            )
            asking.async_stream_infer(model, inputs, model_version=str(version))
            asking.stop_stream()  # waits for the stream's end
        except InferenceServerException as error:
            answers = [(None, error)]
        except grpc.RpcError as error:
            answers = [(None, InferenceServerException(str(error)))]
        if any(error is not None for _, error in answers):
            self._of_thread.client = None  # it may be the connection's fault
            asking.close()
        return answers

    def _asking(self) -> client.InferenceServerClient:
        """The thread's own: a client has one stream at a time, whose errors name no request."""
        found: client.InferenceServerClient | None = getattr(self._of_thread, "client", None)
        if found is None:
            found = self._of_thread.client = client.InferenceServerClient(self._address)
        return found


def _verdict(answers: _Answers) -> str:
    tokens = 0
    for result, error in answers:
        if error is not None:
            return str(error)
        if result is not None and (counts := result.as_numpy("token_count")) is not None:
            tokens += int(counts.sum())
    return "" if tokens else "it answered without a single token"


def _answer_tokens(answers: _Answers) -> int:
    tokens, has_text, reason = 0, False, b""
    for result, error in answers:
        if error is not None or result is None:
            raise NotScored(str(error))
        tokens += int(_first(result, "token_count", 0))
        has_text = has_text or bool(_first(result, "text", b""))
        reason = _first(result, "finish_reason", b"") or reason
    if not reason:
        raise NotScored("it answered without a finish reason")
    return tokens - (reason == b"stop") if has_text else 0


def _first(result: client.InferResult, output: str, absent: Any) -> Any:
    """The first element of an output."""
    found = result.as_numpy(output)
    return absent if found is None or not found.size else found[0]


def _entries(answers: _Answers, output: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for result, error in answers:
        if error is not None:
            raise NotScored(str(error))
        if result is not None and (found := result.as_numpy(output)) is not None:
            for document in found:
                entries += json.loads(document) if document else []
    if not entries:
        raise NotScored(f"it answered without {output}")
    return entries


def _ids_input(token_ids: Sequence[int]) -> client.InferInput:
    tensor = client.InferInput("input_ids", [len(token_ids)], "INT64")
    tensor.set_data_from_numpy(np.array(token_ids, np.int64))
    return tensor


def _text_input(name: str, text: str) -> client.InferInput:
    tensor = client.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    return tensor


def _is_unreachable(error: InferenceServerException) -> bool:
    return error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
