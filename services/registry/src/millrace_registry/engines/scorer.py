"""A second thread, for what GenAI cannot do: log-probabilities and ``logit_bias``.

Requests that ask for neither never come here. One that does becomes a ``Job``: its prompt and
then its answer go through ``Forward`` piece by piece, and what the client gets, it gets from this
thread alone. An answer that GenAI generates is handed over token by token and scored after it, in
larger pieces when it runs ahead; with ``logit_bias`` the answer is generated here.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from forward import Continuation, Forward
from group import fail
from logprobs import Entries
from sampler import Sampler
from stream import Delta, Stream, respond, take

CANCEL_POLL_SECONDS = 0.05
# Each sequence has a key/value cache in float32; more of them wait.
SEQUENCES_AT_ONCE = 8
PIECE_TOKENS = 256
LOGITS_AT_ONCE = 2**24  # 64 MiB
# What a message may hold: the gateway takes 16 MiB.
PROMPT_LOGPROBS_BYTES = 12 * 2**20


class Failed(Exception):
    """``code`` is Triton's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(eq=False)
class Job:
    """One request. Tokens from ``fed`` on are still to be put through the model.

    ``arrived`` is what GenAI has generated since the last look, under the scorer's lock.
    """

    stream: Stream
    tokens: list[int]
    prompt_size: int
    sampler: Sampler | None = None
    end_tokens: frozenset[int] = frozenset()
    arrived: list[tuple[Delta, str]] = field(default_factory=list)
    failure: Failed | None = None
    is_queued: bool = False
    has_ended: bool = False
    sequence: Continuation | None = None
    fed: int = 0
    checked: float = 0.0
    prompt_entries: list[str] = field(default_factory=list)
    prompt_bytes: int = 0
    delta: Delta = field(default_factory=Delta)
    finish_reason: str = ""

    @property
    def left(self) -> int:
        """How many tokens must be fed before the next thing can be sent or chosen."""
        if self.sampler:
            return len(self.tokens) - self.fed
        wanted = self.prompt_size if self.stream.sampling.logprobs is None else len(self.tokens)
        return max(0, wanted - 1 - self.fed)

    def absorb(self, arrived: Sequence[tuple[Delta, str]]) -> None:
        for delta, reason in arrived:
            self.tokens += delta.tokens
            self.delta.text += delta.text
            self.delta.token_count += delta.token_count
            self.finish_reason = reason


class Scorer:
    """Owns the thread. ``enter``, ``push`` and ``end`` may be called from any other."""

    def __init__(self, forward: Forward, spelling: Sequence[bytes], names: Sequence[str]) -> None:
        self._forward = forward
        self._spelling = spelling
        self._entries = Entries(spelling, names)
        self._piece_tokens = max(1, min(PIECE_TOKENS, LOGITS_AT_ONCE // len(spelling)))
        self._lock = threading.Condition()
        self._ready: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._open = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def enter(self, stream: Stream) -> None:
        """Take a request over. What GenAI generates for it must be handed to ``push``."""
        sampling = stream.sampling
        tokens = stream.prompt[0].tolist()
        job = Job(stream, tokens, len(tokens))
        if not sampling.max_tokens:
            job.finish_reason = "length"
        elif sampling.logit_bias:
            job.sampler = Sampler(sampling.options, sampling.logit_bias)
            job.end_tokens = end_tokens(stream.config)
        if sampling.prompt_logprobs:
            job.prompt_entries.append(self._entries.of_first(tokens[0]))
        stream.job = job
        with self._lock:
            if self._open < SEQUENCES_AT_ONCE:
                self._open += 1
                self._wake(job)
            else:
                self._waiting.append(job)

    def push(self, stream: Stream) -> None:
        """Hand over what GenAI has generated since the last time."""
        with self._lock:
            stream.job.arrived.append((stream.delta, stream.finish_reason))
            if stream.job not in self._waiting:
                self._wake(stream.job)
        stream.delta = Delta()

    def end(self, stream: Stream, code: str, message: str) -> None:
        """Answer with an error instead; nothing happens when the answer is complete."""
        with self._lock:
            stream.job.failure = Failed(code, message)
            self._wake(stream.job)

    def close(self) -> None:
        """Called when no request is left."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()

    def _wake(self, job: Job) -> None:
        if not job.is_queued and not job.has_ended:
            job.is_queued = True
            self._ready.append(job)
            self._lock.notify()

    # The scoring thread

    def _run(self) -> None:
        while job := self._next():
            try:
                self._advance(job)
            except Failed as failed:
                self._finish(job, failed.code, str(failed))
            except Exception as error:
                job.sequence = None  # what state it is in is not known
                self._finish(job, "UNAVAILABLE", f"the scorer failed: {error}")

    def _next(self) -> Job | None:
        """The job whose turn it is, with what has arrived for it; None when closed."""
        with self._lock:
            self._lock.wait_for(lambda: self._ready or self._closing)
            if self._closing:
                return None
            job = self._ready.popleft()
            job.is_queued = False
            job.absorb(job.arrived)
            job.arrived = []
            return job

    def _advance(self, job: Job) -> None:
        """One piece of one job, then the next job has its turn."""
        self._check(job)
        if job.sequence is None:
            job.sequence = self._forward.open()
            job.stream.admitted = job.stream.admitted or time.monotonic()
        if job.left:
            rows = self._feed(job, job.sequence, min(job.left, self._piece_tokens))
            if job.sampler and not job.left:
                self._choose(job, job.sampler, rows[-1])
                self._send(job)
        if not job.left:
            self._send(job)
        if job.left and not job.has_ended:
            with self._lock:
                self._wake(job)

    def _check(self, job: Job) -> None:
        """Raise what the job has come to fail for."""
        if job.failure:
            raise job.failure
        if job.prompt_bytes > PROMPT_LOGPROBS_BYTES:
            message = "prompt_logprobs of this prompt are too large; ask for fewer logprobs"
            raise Failed("INVALID_ARG", message)
        now = time.monotonic()
        if now - job.checked >= CANCEL_POLL_SECONDS:
            job.checked = now
            if job.stream.is_cancelled():
                raise Failed("CANCELLED", "cancelled by the client")

    def _feed(self, job: Job, sequence: Continuation, count: int) -> Any:
        """Feed the next ``count`` tokens, and score those after them that are known.

        Returns:
            The logits, (count, vocabulary).
        """
        rows = sequence.feed(job.tokens[job.fed : job.fed + count])
        following = job.tokens[job.fed + 1 : job.fed + 1 + count]
        in_prompt = max(0, min(len(following), job.prompt_size - job.fed - 1))
        job.fed += count
        sampling = job.stream.sampling
        if sampling.prompt_logprobs:
            entries = self._score(job, rows[:in_prompt], following[:in_prompt])
            job.prompt_entries += entries
            job.prompt_bytes += sum(map(len, entries))
        if sampling.logprobs is not None:
            answer = following[in_prompt:]
            job.delta.logprobs += self._score(job, rows[in_prompt : len(following)], answer)
        return rows

    def _score(self, job: Job, rows: Any, tokens: Sequence[int]) -> list[str]:
        return list(self._entries.of_rows(rows, tokens, job.stream.sampling.logprobs or 0))

    def _choose(self, job: Job, sampler: Sampler, row: Any) -> None:
        """Generate the next token, by the logits after the last one."""
        stream, token = job.stream, sampler.choose(row)
        stream.first_token = stream.first_token or time.monotonic()
        made = len(job.tokens) + 1 - job.prompt_size
        is_last = made == stream.sampling.max_tokens
        reason = "stop" if token in job.end_tokens else "length" if is_last else ""
        take(stream, [token], reason, self._spelling)
        job.absorb([(stream.delta, stream.finish_reason)])
        stream.delta = Delta()
        if stream.sampling.logprobs is not None:
            job.delta.logprobs += self._score(job, row[None], [token])

    def _send(self, job: Job) -> None:
        if not job.delta.token_count and not job.finish_reason:
            return
        if job.finish_reason:
            job.stream.first_token = job.stream.first_token or time.monotonic()
        delta, job.delta = job.delta, Delta()
        respond(job.stream, delta, job.finish_reason, job.prompt_entries)
        if job.finish_reason:
            self._finish(job)

    def _finish(self, job: Job, code: str = "", message: str = "") -> None:
        """Let go of a job; its place goes to the one that has waited longest."""
        if job.has_ended:
            return
        job.has_ended = True
        if job.sequence:
            self._forward.release(job.sequence)
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
            elif self._waiting:
                self._wake(self._waiting.popleft())
            else:
                self._open -= 1
        if code:
            with contextlib.suppress(Exception):  # its client may have gone; others have not
                fail(job.stream.sender, code, message)


def end_tokens(config: Any) -> frozenset[int]:
    """What ends an answer, by a GenerationConfig."""
    if config.ignore_eos:
        return frozenset()
    return frozenset({config.eos_token_id, *config.stop_token_ids})
