"""A third thread, for embeddings: what the model makes of texts before it says what follows.

A request has one or many inputs. They are tokenized, put into batches of about one length, and go
through ``Forward``, the scorer's exact model; a batch's vectors are sent as soon as they are
there. Requests take turns, a piece each: one of many inputs does not keep others waiting.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from embedding import (
    PIECE_TOKENS,
    EmbeddingRequest,
    Means,
    Refused,
    batches,
    check_lengths,
    padded,
    parse_embedding,
    split,
)
from forward import Forward
from group import FINAL, fail
from stream import tensor

CANCEL_POLL_SECONDS = 0.05
# An input of several pieces keeps a key/value cache in float32 between them; more of them wait.
CACHES_AT_ONCE = 8
# A client takes an engine that is silent for long (the gateway: 30 s) for dead.
SIGN_OF_LIFE_SECONDS = 5.0

Encode = Callable[[str], Any]


class _Cancelled(Exception):
    """The client has gone."""


@dataclass(eq=False)
class Job:
    """One request. ``inputs`` are texts or arrays of token ids. Times are of ``time.monotonic``.

    ``steps`` is the work that is left, each step one piece.
    """

    sender: Any
    request: EmbeddingRequest
    inputs: Sequence[Any]
    arrived: float
    steps: Generator[None, None, None] = field(init=False)
    admitted: float = 0.0
    first_vector: float = 0.0
    told: float = 0.0
    checked: float = 0.0
    token_count: int = 0

    def timing(self) -> str:
        moments = {
            "queue_seconds": self.admitted,
            "first_token_seconds": self.first_vector,
            "total_seconds": time.monotonic(),
        }
        return json.dumps({name: round(at - self.arrived, 6) for name, at in moments.items()})


class Embedder:
    """Owns the thread. ``take`` may be called from any other.

    Args:
        encode: token ids of a text, int64 (tokens); called in the thread.
        vocabulary: how many tokens there are.
    """

    def __init__(
        self, forward: Forward, encode: Encode, vocabulary: int, context_tokens: int
    ) -> None:
        self._forward = forward
        self._encode = encode
        self._vocabulary = vocabulary
        self._context_tokens = context_tokens
        self._lock = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._caches = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def take(self, inputs: Mapping[str, Any], sender: Any) -> bool:
        """Take a request over if it is for embeddings.

        Raises:
            ValueError: it is, and is refused; the message says why.
        """
        request = parse_embedding(inputs["sampling"][0])
        if request is None:
            return False
        parts = split(self._whole(inputs), request.sizes)
        now = time.monotonic()
        job = Job(sender, request, parts, arrived=now, told=now)
        job.steps = self._steps(job)
        with self._lock:
            self._jobs.append(job)
            self._lock.notify()
        return True

    def close(self) -> None:
        """Called when no request is left."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()

    def _whole(self, inputs: Mapping[str, Any]) -> Any:
        """The inputs one after the other."""
        if ("prompt" in inputs) == ("input_ids" in inputs):
            raise ValueError("give either prompt or input_ids")
        if "prompt" in inputs:
            return inputs["prompt"][0].decode()
        tokens = inputs["input_ids"].reshape(-1).copy()  # Triton's memory is not ours to keep
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._vocabulary:
            raise ValueError(f"a token id is outside the vocabulary of {self._vocabulary}")
        return tokens

    # The embedding thread

    def _run(self) -> None:
        while job := self._next():
            try:
                self._check(job)
                next(job.steps)
            except StopIteration:
                continue
            except _Cancelled:
                self._fail(job, "CANCELLED", "cancelled by the client")
            except Refused as error:
                self._fail(job, "INVALID_ARG", str(error))
            except Exception as error:
                self._fail(job, "UNAVAILABLE", f"the embedder failed: {error}")
            else:
                with self._lock:
                    self._jobs.append(job)
            self._reassure()

    def _next(self) -> Job | None:
        """The job whose turn it is; None when closed."""
        with self._lock:
            self._lock.wait_for(lambda: self._jobs or self._closing)
            return None if self._closing else self._jobs.popleft()

    def _steps(self, job: Job) -> Generator[None, None, None]:
        job.admitted = time.monotonic()
        size = self._forward.hidden_size
        _check_size(job.request, size)
        sequences = []
        for one in job.inputs:
            sequences.append(self._encode(one) if isinstance(one, str) else one)
            yield
        lengths = [len(sequence) for sequence in sequences]
        check_lengths(lengths, self._context_tokens)
        job.token_count = sum(lengths)
        found = batches(lengths)
        for number, batch in enumerate(found, start=1):
            if number > 1:
                yield
            means = Means([lengths[index] for index in batch], size)
            yield from self._feed(padded([sequences[index] for index in batch]), means)
            job.first_vector = job.first_vector or time.monotonic()
            vectors = means.vectors(job.request.dimensions)
            _respond(job, batch, vectors, is_last=number == len(found))

    def _feed(self, tokens: Any, means: Means) -> Iterator[None]:
        """Put a batch through the model; when that is broken off, what it ran in is not kept."""
        width = tokens.shape[1]
        while width > PIECE_TOKENS and self._caches >= CACHES_AT_ONCE:
            yield
        self._caches += 1
        try:
            sequences = self._forward.open()
            for begin in range(0, width, PIECE_TOKENS):
                if begin:
                    yield
                means.add(sequences.hidden(tokens[:, begin : begin + PIECE_TOKENS]))
            self._forward.release(sequences)
        finally:
            self._caches -= 1

    def _check(self, job: Job) -> None:
        """Raise when nobody waits for the answer."""
        now = time.monotonic()
        if now - job.checked >= CANCEL_POLL_SECONDS:
            job.checked = now
            if job.sender.is_cancelled():
                raise _Cancelled

    def _reassure(self) -> None:
        """Tell those that have waited for long that they are not forgotten."""
        now = time.monotonic()
        with self._lock:
            late = [job for job in self._jobs if now - job.told >= SIGN_OF_LIFE_SECONDS]
        for job in late:
            with contextlib.suppress(Exception):  # found out when it is its turn
                _respond(job)

    def _fail(self, job: Job, code: str, message: str) -> None:
        job.steps.close()
        with contextlib.suppress(Exception):  # its client may have gone; others have not
            fail(job.sender, code, message)


def _check_size(request: EmbeddingRequest, size: int) -> None:
    if not size:
        raise Refused("embed: this model's graph does not show where its output layer begins")
    if request.dimensions is not None and request.dimensions > size:
        raise Refused(f"dimensions must be 1 to {size}, not {request.dimensions}")


def _respond(
    job: Job, indices: Sequence[int] = (), vectors: Any = None, is_last: bool = False
) -> None:
    """Send one response: vectors, float32 (inputs, dimensions), of the inputs ``indices``."""
    job.told = time.monotonic()
    tensors = [tensor("text", ""), tensor("token_count", 0)]
    tensors.append(tensor("finish_reason", "stop" if is_last else ""))
    if indices:
        tensors.append(pb_utils.Tensor("embedding", vectors))
        tensors.append(pb_utils.Tensor("embedding_index", np.array(indices, np.int32)))
    if is_last:
        tensors.append(tensor("prompt_token_count", job.token_count))
        tensors.append(tensor("timing", job.timing()))
    job.sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if is_last else 0)
