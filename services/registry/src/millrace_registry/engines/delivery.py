"""How requests come in and answers leave, whatever generates them: alone or with their group.

What has gathered is sent every ``SEND_SECONDS``, or less often, so that sending takes at most
``SEND_SHARE`` of the generating thread's time. First tokens and ends do not wait, and an answer
that is not streamed waits for its end, but for a sign of life every ``WHOLE_SECONDS``.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from group import FINAL, Groups, Member, fail
from stream import Delta, Stream, outputs_of, respond

SEND_SECONDS = 0.010
SEND_SHARE = 0.33
WHOLE_SECONDS = 1.0
LOOK_SECONDS = 0.020
# Of requests without a group so many are asked after at a look, in turn.
LOOKS_AT_ONCE = 6

Parse = Callable[[dict[str, Any], Any, Member | None], Stream | None]


class Delivery:
    """Requests may be received and fail in any thread; the generating thread alone sends."""

    def __init__(self) -> None:
        self._groups = Groups()
        self._send_at = self._look_at = 0.0
        self._turn = 0

    def receive(self, request: Any, sender: Any, parse: Parse) -> Stream | None:
        """The stream that a request becomes; None when it is answered already.

        Args:
            parse: is given the inputs by name, the sender, and the request's place in its group;
                what it raises (ValueError, TypeError, KeyError, RuntimeError) refuses the request.
        """
        parameters = json.loads(request.parameters() or "{}")
        group, member = str(parameters.get("group", "")), None
        try:
            if cancelled := parameters.get("cancel"):
                self._groups.cancel(group, cancelled)
                sender.send(flags=FINAL)
                return None
            if group:
                member = self._groups.join(group, request.request_id(), sender)
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            stream = parse(inputs, sender, member)
            if stream:
                _check(stream)
            return stream
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            # GenAI's RuntimeError says on its last line which value is out of range.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._refuse(sender, member, "INVALID_ARG", lines[-1])
            return None

    def fail(self, stream: Stream, code: str, message: str) -> None:
        """End an answer with an error; ``code`` is Triton's."""
        self._refuse(stream.sender, stream.member, code, message)

    def is_time(self, now: float) -> bool:
        """Whether what has gathered is to be sent."""
        return now >= self._send_at

    def put(self, stream: Stream, now: float) -> None:
        """Send what a stream has gathered, unless it is to gather more."""
        if not stream.finish_reason and now < stream.due:
            return
        delta, stream.delta = stream.delta, Delta()
        if not stream.sampling.is_streamed:
            stream.due = now + WHOLE_SECONDS
        if stream.member:
            outputs = outputs_of(stream, delta, stream.finish_reason)
            self._groups.put(stream.member, outputs, is_last=bool(stream.finish_reason))
        else:
            respond(stream, delta, stream.finish_reason)

    def is_time_to_look(self, now: float) -> bool:
        """Whether it is time to ask who has gone."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        return True

    def cancelled(self, streams: Sequence[Stream]) -> list[Stream]:
        """Those that have not ended, and whose clients are known to have gone."""
        self._groups.poll()
        streams = [stream for stream in streams if _may_be_asked_after(stream)]
        alone = [stream for stream in streams if not stream.member]
        turns = range(self._turn, self._turn + min(LOOKS_AT_ONCE, len(alone)))
        self._turn = turns.stop
        looked_at = [alone[turn % len(alone)] for turn in turns]
        members = [stream for stream in streams if stream.member]
        return [stream for stream in (*members, *looked_at) if stream.is_cancelled()]

    def was_given_up(self, stream: Stream, now: float) -> bool:
        """Whether the client of a stream that waited has gone meanwhile."""
        has_waited = now - stream.arrived > LOOK_SECONDS
        return has_waited and _may_be_asked_after(stream) and bool(stream.is_cancelled())

    def flush(self, now: float, was_time: bool) -> None:
        """Send what was put for groups; ``now`` is when this round of sending began."""
        self._groups.flush()
        if was_time:
            spent = time.monotonic() - now
            self._send_at = now + max(SEND_SECONDS, spent / SEND_SHARE)

    def _refuse(self, sender: Any, member: Member | None, code: str, message: str) -> None:
        if member:
            self._groups.leave(member, code, message)
        else:
            fail(sender, code, message)


def _may_be_asked_after(stream: Stream) -> bool:
    """Triton crashes when it is asked whether a request is cancelled that has ended.

    What the scorer answers may end at any moment, and the scorer asks by itself.
    """
    return not (stream.job or stream.finish_reason or stream.closed)


def _check(stream: Stream) -> None:
    if stream.member and stream.sampling.is_scored:
        raise ValueError("group cannot be had together with log-probabilities or logit_bias")
    if not stream.sampling.is_streamed:
        stream.due = stream.arrived + WHOLE_SECONDS
