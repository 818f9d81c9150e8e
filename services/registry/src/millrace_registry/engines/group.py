"""The requests of one caller whose answers leave together: one response for all, not one each.

A response costs the engine's thread, Triton and the caller's reader about as much as a step of a
small model, whatever is in it. A caller with many streams over one ``ModelStreamInfer`` call names
them a group; what they have gathered then goes out as one response of the group's oldest open
request, with the output ``batch`` alone, and the caller tells them apart by their request ids.
Triton still sees each request begin and end. Why: deploy/adr/0009-streams-that-leave-together.md.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Groups:
    """All groups by name. Requests come and are cancelled in one thread, and answered in another.

    A group is there as long as it has members.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[str, Group] = {}

    def join(self, name: str, identifier: str, sender: Any) -> "Member":
        """Answer the request ``identifier`` through the group from now on.

        Raises:
            ValueError: a request of that id is in the group already.
        """
        with self._lock:
            group = self._groups.setdefault(name, Group())
            if identifier in group.members:
                raise ValueError(f"the group has a request {identifier!r} already")
            member = Member(group, identifier, sender)
            group.members[identifier] = member
            return member

    def cancel(self, name: str, identifier: str) -> None:
        """The caller wants no more of this request; one that has ended already is no mistake."""
        with self._lock:
            group = self._groups.get(name)
            if group is not None and identifier in group.members:
                group.members[identifier].has_been_cancelled = True

    def poll(self) -> None:
        """Cancel the members of every group whose call has been cancelled.

        A group is on one call: its oldest member is asked for all, since asking takes a while.
        """
        with self._lock:
            for group in self._groups.values():
                leader = next(iter(group.members.values()), None)
                if leader is not None and leader.sender.is_cancelled():
                    for member in group.members.values():
                        member.has_been_cancelled = True

    def put(self, member: "Member", outputs: Mapping[str, str | int], is_last: bool) -> None:
        """Add to the member's next batch. The request ends with ``is_last``."""
        with self._lock:
            member.group.parcels.append({"id": member.id, **outputs})
            if is_last:
                member.group.leaving.append(member)

    def flush(self) -> None:
        """Send what was put since the last time."""
        with self._lock:
            for name, group in list(self._groups.items()):
                group.flush()
                if not group.members:
                    del self._groups[name]

    def leave(self, member: "Member", code: str, message: str) -> None:
        """End a request with an error, which starts with its code; it has no other field for it."""
        with self._lock:
            group = member.group
            group.flush()
            if group.members.pop(member.id, None) is not None:
                fail(member.sender, code, f"{code}: {message}")


class Group:
    """``members`` by request id, in the order in which they came."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.parcels: list[dict[str, Any]] = []
        self.leaving: list[Member] = []

    def flush(self) -> None:
        if not self.parcels:
            return
        leader = next(iter(self.members.values()))
        leader.sender.send(_batch(self.parcels), flags=FINAL if leader in self.leaving else 0)
        for member in self.leaving:
            del self.members[member.id]
            if member is not leader:
                member.sender.send(flags=FINAL)
        self.parcels, self.leaving = [], []


@dataclass(eq=False)
class Member:
    """One request of a group."""

    group: Group
    id: str
    sender: Any
    has_been_cancelled: bool = False


def _batch(parcels: list[dict[str, Any]]) -> Any:
    content = json.dumps(parcels, separators=(",", ":")).encode()
    tensor = pb_utils.Tensor("batch", np.array([content], dtype=np.object_))
    return pb_utils.InferenceResponse([tensor])


def fail(sender: Any, code: str, message: str) -> None:
    """End a request with an error; ``code`` is Triton's."""
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
