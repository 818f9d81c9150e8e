"""Whatever happens to the requests of a group, each gets its own answer once, and one end."""

import json
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Drawn
from hypothesis.stateful import RuleBasedStateMachine, consumes, initialize, invariant, rule

FINAL = 1


def _tensor(name: str, content: Any) -> Any:
    return SimpleNamespace(name=name, content=content)


def _response(tensors: Any = (), error: Any = None) -> Any:
    return SimpleNamespace(tensors=tensors, error=error)


class _Error(Exception):
    INVALID_ARG, UNAVAILABLE, CANCELLED = 3, 14, 1

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


TRITON = SimpleNamespace(
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    InferenceResponse=_response,
    Tensor=_tensor,
    TritonError=_Error,
)
with mock.patch.dict(sys.modules, {"triton_python_backend_utils": TRITON}):
    from millrace_registry.engines import group


@dataclass
class Sender:
    """A request's way back, as Triton has it: nothing may follow the end."""

    batches: list[list[dict[str, Any]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    has_ended: bool = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.has_ended, "nothing may be sent after the end"
        self.has_ended = flags == FINAL
        if response is not None and response.error:
            self.errors.append(str(response.error))
        elif response is not None:
            (tensor,) = response.tensors
            assert tensor.name == "batch"
            self.batches.append(json.loads(tensor.content[0]))


class Histories(RuleBasedStateMachine):
    """Two groups; requests come, are answered, cancelled and fail in any order."""

    members = Drawn("members")

    @initialize()
    def begin(self) -> None:
        self.groups = group.Groups()
        self.senders: dict[str, Sender] = {}
        self.put: dict[str, list[str]] = {}
        self.failed: set[str] = set()
        self.ended: set[str] = set()

    @rule(target=members, name=st.sampled_from("ab"))
    def join(self, name: str) -> Any:
        identifier = f"{name}{len(self.senders)}"
        sender = self.senders[identifier] = Sender()
        self.put[identifier] = []
        return self.groups.join(name, identifier, sender)

    @rule(member=members, text=st.text(max_size=3))
    def answer(self, member: Any, text: str) -> None:
        if member.id not in self.ended:
            self.put[member.id].append(text)
            self.groups.put(member, {"text": text}, is_last=False)

    @rule(member=consumes(members), text=st.text(max_size=3))
    def end(self, member: Any, text: str) -> None:
        self.ended.add(member.id)
        self.put[member.id].append(text)
        self.groups.put(member, {"text": text}, is_last=True)

    @rule(member=consumes(members))
    def fail(self, member: Any) -> None:
        self.ended.add(member.id)
        self.failed.add(member.id)
        self.groups.leave(member, "UNAVAILABLE", "broken")

    @rule(member=members)
    def cancel(self, member: Any) -> None:
        self.groups.cancel(member.id[0], member.id)
        assert member.has_been_cancelled

    @rule(member=members)
    def join_twice(self, member: Any) -> None:
        with pytest.raises(ValueError, match="already"):
            self.groups.join(member.id[0], member.id, Sender())

    @rule()
    def flush(self) -> None:
        self.groups.flush()
        came: dict[str, list[str]] = {identifier: [] for identifier in self.senders}
        for identifier, sender in self.senders.items():
            for parcel in [parcel for batch in sender.batches for parcel in batch]:
                assert parcel["id"][0] == identifier[0], "groups do not mix"
                came[parcel["id"]].append(parcel["text"])
        # A batch goes to the oldest that is open, so that senders in turn hold it in order.
        assert came == self.put

    @invariant()
    def failures_are_told_at_once(self) -> None:
        for identifier in self.failed:
            assert self.senders[identifier].errors == ["UNAVAILABLE: broken"]
            assert self.senders[identifier].has_ended

    def teardown(self) -> None:
        self.groups.flush()
        for identifier, sender in self.senders.items():
            assert sender.has_ended == (identifier in self.ended)


TestHistories = Histories.TestCase


def test_one_that_is_unknown_can_be_cancelled() -> None:
    group.Groups().cancel("a", "a1")
