"""Triton Python-backend model around OpenVINO GenAI's ContinuousBatchingPipeline.

The registry copies this file into the model repository as ``model.py``, with the others of this
folder beside it; it runs in Triton's environment and the service never imports it. The weights
are in ``<version folder>/artifact``. The model is decoupled: one request, many responses.

Inputs (``prompt`` or ``input_ids``, not both)
    ``prompt``     BYTES [1]  rendered text; special tokens in it are parsed as such
    ``input_ids``  INT64 [n]  the prompt as token ids
    ``sampling``   BYTES [1]  JSON object with any of: max_tokens (at most, and without it, what
        fits the context; 0 with prompt_logprobs), temperature (default 1; 0 is greedy), top_p,
        top_k, seed, stop (string or list), presence_penalty, frequency_penalty, n (only 1),
        ignore_eos, stream (default true; false: all in one response, or, while it takes long,
        one every second, so that the caller knows that it goes on), logprobs (0 to 20: so many
        alternatives with each generated token), prompt_logprobs (true: the same for the prompt),
        logit_bias (token id -> -100 to 100), response_format ({"type": "json_schema", "schema"},
        {"type": "json_object"} or {"type": "regex", "pattern"}: the answer keeps to it; see
        ``constraint.py``). Or embed and nothing else: true for a vector of the prompt in place of
        an answer; or {"sizes": list, "dimensions": int} for those of as many inputs as there are
        sizes, which stand in the prompt one after the other, each of so many characters or token
        ids, and of each vector its first dimensions, in unit length again (``embedding.py``)
Parameters of a request
    ``group``   string: the answer leaves with those of the same group, as ``group.py`` says; not
        together with log-probabilities and logit_bias
    ``cancel``  string: the request of this id in the group is to end; the inputs are not looked at
Outputs of every response
    ``text``           BYTES [1]  text since the last response, always whole characters
    ``token_count``    INT32 [1]  tokens generated since then, an end-of-text token included
    ``finish_reason``  BYTES [1]  "" until the last response: "stop" or "length"
    ``logprobs``       BYTES [1]  when asked for: JSON list with one entry a generated token,
        {"id", "token", "logprob", "bytes", "top": [{"id", "token", "logprob", "bytes"}, …]}
Outputs of responses to embed, each input's once, the shortest inputs' first
    ``embedding``        FP32 [inputs, dimensions]  in unit length
    ``embedding_index``  INT32 [inputs]  whose they are
Outputs of the last response only
    ``prompt_token_count``  INT32 [1]
    ``timing``              BYTES [1]  JSON {"queue_seconds", "first_token_seconds",
        "total_seconds"}, each counted from arrival
    ``prompt_logprobs``     BYTES [1]  when asked for: JSON list, the same entry for each token of
        the prompt; the first one's "logprob" is null
Output of a group's responses, alone
    ``batch``  BYTES [1]  JSON list of the members' responses: objects of the outputs above, with
        the "id" of the request

Log-probabilities are natural, and the model's own: in float32, before temperature, penalties,
bias and ``response_format`` (an answer may hold a token that the model thinks unlikely). A special
token has "bytes" [] and its name for "token"; "logprob" is null for minus infinity.

A mistake in the request is answered with the error code INVALID_ARG, a request its client
cancelled with CANCELLED, and once the generation thread has died everything with UNAVAILABLE.

One thread generates and sends. GenAI's ``step`` holds the GIL and a send waits for Triton, so the
thread shares its time (``delivery.py``). What needs log-probabilities or a bias is sent by the
scorer's thread instead (``scorer.py``), vectors by the embedder's (``embedder.py``), and a grammar
not seen before is first tried in a thread of its own (``grammar.py``).
"""

import gc
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
import triton_python_backend_utils as pb_utils
from constraint import Constraint, parse_constraint
from delivery import Delivery
from embedder import Embedder
from forward import Forward
from grammar import GrammarCheck, structured
from group import Member
from intake import Intake, prompt_of, require_known, require_room
from sampling import Sampling, parse_sampling
from scorer import Scorer
from stream import Stream, take
from text_stream import TextStream, token_bytes, token_names

GIL_SWITCH_SECONDS = 0.0005
TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
RUNNING = genai.GenerationStatus.RUNNING
FINISH_REASONS = {
    genai.GenerationFinishReason.NONE: "",
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        setting = {name: int(entry["string_value"]) for name, entry in parameters.items()}
        artifact = Path(args["model_repository"], args["model_version"], "artifact")
        if missing := [name for name in TOKENIZERS if not (artifact / name).is_file()]:
            raise pb_utils.TritonModelException(f"the artifact lacks {' and '.join(missing)}")
        shape = json.loads((artifact / "config.json").read_text())
        self.context_tokens = int(shape["max_position_embeddings"])
        self.max_sequences = setting["max_sequences"]
        self.pipeline = start_pipeline(artifact, setting)
        self.defaults = self.pipeline.get_config()
        self.tokenizer = self.pipeline.get_tokenizer()
        pieces = self.tokenizer.get_vocab()
        visible = self.tokenizer.decode([[token] for token in range(max(pieces.values()) + 1)])
        self.spelling = token_bytes(pieces, visible)
        names = token_names(pieces, len(visible))
        forward = Forward(artifact, setting["threads"])
        self.scorer = Scorer(forward, self.spelling, names)
        self.embedder = Embedder(forward, self._encode, len(visible), self.context_tokens)
        self.grammars = GrammarCheck(artifact, len(visible))
        self.checker = ThreadPoolExecutor(max_workers=1)
        self.active: list[Stream] = []
        self.delivery = Delivery()
        self.intake = Intake(self.delivery)
        sys.setswitchinterval(GIL_SWITCH_SECONDS)
        self.thread = threading.Thread(target=self._run)
        # A full collection would stop all streams for tens of milliseconds; what is there stays.
        gc.collect()
        gc.freeze()
        self.thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if stream := self.delivery.receive(request, sender, self._parse):
                self._start(stream)

    def finalize(self) -> None:
        """Called when no request is left."""
        self.checker.shutdown()
        self.scorer.close()
        self.embedder.close()
        self.intake.close()
        self.thread.join()

    def _parse(self, inputs: dict[str, Any], sender: Any, member: Member | None) -> Stream | None:
        arrived = time.monotonic()
        if not member and self.embedder.take(inputs, sender):
            return None
        prompt = prompt_of(inputs, self._encode_rendered, len(self.spelling))
        room = require_room(self.context_tokens, prompt)
        sampling = parse_sampling(inputs["sampling"][0], room)
        require_known(sampling.logit_bias, len(self.spelling))
        constraint = None
        if sampling.response_format is not None:
            constraint = parse_constraint(sampling.response_format)
        config = self._config(sampling, constraint)
        text = TextStream(sampling.stops)
        return Stream(sender, prompt, config, sampling, constraint, text, arrived, member)

    def _config(self, sampling: Sampling, constraint: Constraint | None) -> Any:
        config = genai.GenerationConfig(**sampling.options)
        config.eos_token_id = self.defaults.eos_token_id
        config.stop_token_ids = self.defaults.stop_token_ids
        if constraint:
            config.structured_output_config = structured(constraint.kind, constraint.text)
        config.validate()
        return config

    def _encode_rendered(self, text: str) -> Any:
        """Token ids of a prompt, whose special tokens are in its text."""
        return self.tokenizer.encode(text, add_special_tokens=False).input_ids.data

    def _encode(self, text: str) -> Any:
        """Token ids of a text that is no prompt: with the special tokens the tokenizer adds."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=True).input_ids.data[0])

    def _start(self, stream: Stream) -> None:
        constraint = stream.constraint
        if constraint is None:
            self._enter(stream)
        elif self.grammars.is_known(constraint.kind, constraint.text):
            self._check_grammar(stream)
        else:
            self.checker.submit(self._check_grammar, stream)

    def _check_grammar(self, stream: Stream) -> None:
        """Enter the stream if its grammar compiles. In a thread of its own when it is new."""
        try:
            refusal = self.grammars.refusal(stream.constraint.kind, stream.constraint.text)
        except Exception as error:
            self.delivery.fail(stream, "UNAVAILABLE", f"grammars cannot be checked: {error}")
            return
        if refusal:
            self.delivery.fail(stream, "INVALID_ARG", f"response_format: {refusal}")
        else:
            self._enter(stream)

    def _enter(self, stream: Stream) -> None:
        if stream.sampling.is_generated_by_scorer:
            self.scorer.enter(stream)
            return
        if stream.sampling.is_scored:
            self.scorer.enter(stream)
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
            for stream in (*self.intake.break_down(failure), *self.active):
                self._close(stream, "UNAVAILABLE", failure)

    def _generate(self) -> None:
        number = 0
        while self.intake.wait(bool(self.active)):
            taken = self.intake.take(self.max_sequences - len(self.active))
            self.active += taken
            for stream in taken:
                number += 1
                prompt = ov.Tensor(stream.prompt)
                stream.handle = self.pipeline.add_request(number, prompt, stream.config)
            if self.pipeline.has_non_finished_requests():
                self.pipeline.step()
            now = time.monotonic()
            self._send(now)
            if self.delivery.is_time_to_look(now):
                self._look()
            self.active = [stream for stream in self.active if not stream.closed]

    def _send(self, now: float) -> None:
        """Send what is due after a step: everything when it is time, else firsts and ends."""
        is_time = self.delivery.is_time(now)
        for stream in self.active:
            if is_time or stream.watches or stream.handle.get_status() != RUNNING:
                self._read(stream)
                if is_time or stream.finish_reason or not stream.first_token:
                    self._hand_on(stream, now)
        self.delivery.flush(now, is_time)

    def _read(self, stream: Stream) -> None:
        """Take what was produced since the last time."""
        tokens: list[int] = []
        reason = ""
        while not reason and stream.handle.can_read():
            for output in stream.handle.read().values():
                tokens += output.generated_ids
                reason = FINISH_REASONS[output.finish_reason]
        if tokens or reason:
            take(stream, tokens, reason, self.spelling)

    def _hand_on(self, stream: Stream, now: float) -> None:
        """To the client, or to the scorer."""
        if not stream.delta.token_count and not stream.finish_reason:
            return
        stream.first_token = stream.first_token or now
        if stream.job:
            self.scorer.push(stream)
        else:
            self.delivery.put(stream, now)
        if stream.finish_reason:
            self._close(stream)

    def _look(self) -> None:
        """End what nobody waits for, what the scorer has ended, and what the engine gives up on."""
        for stream in self.delivery.cancelled(self.active):
            self._close(stream, "CANCELLED", "cancelled by the client")
        for stream in self.active:
            if stream.closed or stream.finish_reason:
                continue
            if stream.job and stream.job.has_ended:
                self._close(stream)
            elif stream.handle.get_status() == genai.GenerationStatus.IGNORED:
                self._close(stream, "INVALID_ARG", "the prompt does not fit the KV cache")

    def _close(self, stream: Stream, code: str = "", message: str = "") -> None:
        if stream.handle:
            stream.handle.cancel()
        if code and not stream.closed:
            if stream.job:
                self.scorer.end(stream, code, message)
            else:
                self.delivery.fail(stream, code, message)
        stream.closed = True


def start_pipeline(artifact: Path, setting: dict[str, int]) -> Any:
    """The precision of keys and values is the artifact's: its IR names KV_CACHE_PRECISION among
    its runtime options, which no property here may overrule."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = setting["cache_gibibytes"]
    scheduler.max_num_batched_tokens = setting["max_batched_tokens"]
    scheduler.max_num_seqs = setting["max_sequences"]
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_NUM_THREADS": setting["threads"]}
    return genai.ContinuousBatchingPipeline(artifact, scheduler, "CPU", properties)
