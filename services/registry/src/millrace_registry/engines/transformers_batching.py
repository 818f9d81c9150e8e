"""Triton Python-backend model around transformers' continuous batching: the engine for checkpoints.

It serves a Hugging Face checkpoint as it is, on the GPU when there is one. The registry copies
this file into the model repository as ``model.py``, with the others that it imports beside it; it
runs in Triton's environment and the service never imports it.

Inputs, outputs, errors and what they mean are those of ``openvino_genai.py``, so nobody can tell
which engine answers, but for this: ``prompt_logprobs``, ``response_format`` and ``embed`` are
refused by name, log-probabilities are in the checkpoint's precision, and the two engines draw
different answers with the same seed.

torch and transformers are Triton's own when it has them, and else of the environment whose
packages ``MILLRACE_ENGINE_PACKAGES`` names.

One thread generates and sends, in turns (``delivery.py``).
"""

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

sys.path.extend(filter(None, [os.environ.get("MILLRACE_ENGINE_PACKAGES")]))

import torch
from choice import Chooser, choose
from delivery import Delivery
from group import Member
from intake import Intake, prompt_of, require_known, require_room
from logprobs import Entries
from paged import PagedBatch
from sampling import parse_sampling
from stream import Stream, take
from text_stream import TextStream
from vocabulary import Vocabulary

SUPPORTED = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "n", "ignore_eos"}
    | {"presence_penalty", "frequency_penalty", "logit_bias", "logprobs"}
)
GIB = 2**30


@dataclass
class Place:
    """A stream's place in the batch: the name it has there, and what it may still generate."""

    name: str
    tokens_left: int


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        setting = {name: int(entry["string_value"]) for name, entry in parameters.items()}
        artifact = Path(args["model_repository"], args["model_version"], "artifact")
        shape = json.loads((artifact / "config.json").read_text())
        context_tokens = int(shape["max_position_embeddings"])
        self.max_sequences = setting["max_sequences"]
        if setting["threads"]:
            torch.set_num_threads(setting["threads"])
        try:
            vocabulary = Vocabulary(artifact / "tokenizer.json")
            self.batch = PagedBatch(
                artifact,
                cache_bytes=setting["cache_gibibytes"] * GIB,
                most_cached_tokens=self.max_sequences * context_tokens,
                batch_tokens=setting["max_batched_tokens"],
            )
        except Exception as error:  # tokenizers raises nothing narrower
            raise pb_utils.TritonModelException(
                f"the artifact cannot be served: {error}"
            ) from error
        self.context_tokens = min(context_tokens, self.batch.capacity_tokens)
        self.encode = vocabulary.encode
        self.vocabulary_size = len(vocabulary.spelling)
        # A model may have been given more logits than there are tokens.
        missing = max(0, self.batch.vocabulary_size - self.vocabulary_size)
        self.spelling = [*vocabulary.spelling, *[b""] * missing]
        self.entries = Entries(self.spelling, [*vocabulary.names, *[""] * missing])
        self.active: dict[str, Stream] = {}
        self.delivery = Delivery()
        self.intake = Intake(self.delivery)
        self.thread = threading.Thread(target=self._run)
        # A full collection would stop all streams for tens of milliseconds; what is there stays.
        gc.collect()
        gc.freeze()
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if stream := self.delivery.receive(request, sender, self._parse):
                self._enter(stream)

    def finalize(self) -> None:
        """Called when no request is left."""
        self.intake.close()
        self.thread.join()

    def _parse(self, inputs: dict[str, Any], sender: Any, member: Member | None) -> Stream:
        arrived = time.monotonic()
        refuse_unsupported(inputs["sampling"][0])
        prompt = prompt_of(inputs, self.encode, self.vocabulary_size)
        room = require_room(self.context_tokens, prompt)
        sampling = parse_sampling(inputs["sampling"][0], room)
        require_known(sampling.logit_bias, self.vocabulary_size)
        chooser = Chooser(sampling.options, sampling.logit_bias)
        text = TextStream(sampling.stops)
        return Stream(sender, prompt, chooser, sampling, None, text, arrived, member)

    def _enter(self, stream: Stream) -> None:
        if failure := self.intake.enter(stream):
            self._close(stream, "UNAVAILABLE", failure)

    # The generation thread

    def _run(self) -> None:
        """Generate until closed; when that breaks nobody may be left waiting."""
        try:
            self._generate()
        except Exception as error:
            failure = f"the generation loop died: {error}"
            pb_utils.Logger.log_error(failure)
            for stream in (*self.intake.break_down(failure), *self.active.values()):
                self._close(stream, "UNAVAILABLE", failure)

    def _generate(self) -> None:
        number = 0
        while self.intake.wait(bool(self.active)):
            for stream in self.intake.take(self.max_sequences - len(self.active)):
                number += 1
                stream.handle = Place(str(number), stream.sampling.max_tokens)
                self.active[stream.handle.name] = stream
                self.batch.add(stream.handle.name, stream.prompt[0].tolist())
            self.batch.step(self._choose)
            now = time.monotonic()
            self._send(now)
            if self.delivery.is_time_to_look(now):
                self._look()
            self.active = {name: one for name, one in self.active.items() if not one.closed}

    def _choose(self, names: Sequence[str], logits: torch.Tensor) -> list[int]:
        """The next token of each of the streams, which take it at once."""
        streams = [self.active[name] for name in names]
        tokens: list[int] = choose(logits, [stream.config for stream in streams])
        for stream, token, row in zip(streams, tokens, logits, strict=True):
            self._take(stream, token, row)
        return tokens

    def _take(self, stream: Stream, token: int, row: torch.Tensor) -> None:
        alternatives, place = stream.sampling.logprobs, stream.handle
        if alternatives is not None:
            stream.delta.logprobs += self.entries.of_rows(
                row[None].cpu().numpy(), [token], alternatives
            )
        place.tokens_left -= 1
        reason = "" if place.tokens_left else "length"
        if token in self.batch.end_tokens and not stream.sampling.options.get("ignore_eos"):
            reason = "stop"
        take(stream, [token], reason, self.spelling)

    def _send(self, now: float) -> None:
        """Send what is due after a step: everything when it is time, else firsts and ends."""
        is_time = self.delivery.is_time(now)
        for stream in self.active.values():
            if is_time or stream.finish_reason or not stream.first_token:
                self._hand_on(stream, now)
        self.delivery.flush(now, is_time)

    def _hand_on(self, stream: Stream, now: float) -> None:
        if not stream.delta.token_count:
            return
        stream.first_token = stream.first_token or now
        self.delivery.put(stream, now)
        if stream.finish_reason:
            self._close(stream)

    def _look(self) -> None:
        """End the streams whose client has gone."""
        for stream in self.delivery.cancelled(list(self.active.values())):
            self._close(stream, "CANCELLED", "cancelled by the client")

    def _close(self, stream: Stream, code: str = "", message: str = "") -> None:
        if stream.handle:
            self.batch.end(stream.handle.name)
        if code and not stream.closed:
            self.delivery.fail(stream, code, message)
        stream.closed = True


def refuse_unsupported(document: bytes) -> None:
    """Refuse what ``parse_sampling`` may know and this engine cannot do.

    Raises:
        ValueError: naming it.
    """
    given = json.loads(document)
    if not isinstance(given, dict):
        raise ValueError("sampling must be a JSON object")
    asked = {name for name in given if given[name] is not None and given[name] is not False}
    if refused := asked - SUPPORTED:
        raise ValueError(f"{min(refused)} is not supported by this model's engine")
