"""A run: models side by side, one rollout after the other on each, with clients at all times.

The rollout ends as the registry decides. When there was enough evidence is told by what the played
engine itself has seen: from when on both versions had ended ``MINIMUM_REQUESTS`` requests since
the canary began, as the policy asks.
"""

import math
import queue
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from millrace.registry.v1 import service_pb2 as pb
from millrace_registry.domain import Rollout, RolloutState, triton_model_name
from millrace_testkit.servers import wait_until
from tests.rollouts.behaviour import Behaviour
from tests.rollouts.clients import Clients
from tests.rollouts.fleet import TENANT, Fleet

MINIMUM_REQUESTS = 20
SHARE = 0.5
BAKE_SECONDS = 3.0
_POLL_SECONDS = 0.1
_FIRST_SECONDS = 60.0
_PATIENCE_SECONDS = 240.0

Say = Callable[[str], None]
Moments = dict[tuple[str, int], list[float]]


@dataclass(frozen=True)
class Tried:
    """One rollout, ended.

    Attributes:
        state: SETTLED or REVERSED; what it was in when patience ended otherwise.
        answers: requests to the new version that the engine itself saw end in the canary.
        enough_seconds: from the canary's begin to enough evidence; None: there never was.
        end_seconds: from the canary's begin to the rollout's end; None: no canary, or no end.
    """

    model: str
    version: int
    how: Behaviour
    state: str
    reason: str
    answers: int
    enough_seconds: float | None
    end_seconds: float | None

    @property
    def late_seconds(self) -> float | None:
        """From enough evidence to the end; 0 when it ended before that."""
        if self.state != RolloutState.REVERSED:
            return None
        if self.end_seconds is None or self.enough_seconds is None:
            return 0.0  # some do not even answer the first question
        return max(0.0, self.end_seconds - self.enough_seconds)


class Trial:
    """All rollouts of ``planned``, on ``models`` models side by side."""

    def __init__(self, fleet: Fleet, planned: Sequence[Behaviour], models: int, say: Say) -> None:
        self._fleet = fleet
        self._models = [f"model-{number}" for number in range(models)]
        self._planned: queue.SimpleQueue[Behaviour] = queue.SimpleQueue()
        for how in planned:
            self._planned.put(how)
        self._say = say
        self._ended: list[tuple[Rollout, Behaviour]] = []
        self._begin_until = math.inf
        self._errors: list[BaseException] = []

    def run(
        self, per_model: int, think_seconds: float, begin_seconds: float = 0.0
    ) -> tuple[list[Tried], Clients]:
        """Until all have ended; or, after ``begin_seconds``, those that had begun.

        Raises:
            TimeoutError: a first version did not settle.
        """
        for model in self._models:
            self._fleet.deploy(model, _strategy())
            self._fleet.registry.roll_out(model, 1, Behaviour())
        for model in self._models:
            state = self._end_of(model, 1, _FIRST_SECONDS).state
            if state != RolloutState.SETTLED:
                raise TimeoutError(f"{model}@1 is {state}")
        clients = Clients(self._fleet.url, self._fleet.key, self._models, per_model, think_seconds)
        wait_until(clients.are_all_answered, _FIRST_SECONDS, "the gateway knows all models")
        clients.start()
        if begin_seconds:
            self._begin_until = time.monotonic() + begin_seconds
        threads = [threading.Thread(target=self._try_on, args=(each,)) for each in self._models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clients.stop()
        if self._errors:
            raise self._errors[0]
        moments = _moments(self._fleet.log)
        return [_tried(rollout, how, moments) for rollout, how in self._ended], clients

    def _try_on(self, model: str) -> None:
        number = 1
        try:
            while time.monotonic() < self._begin_until:
                how = self._planned.get_nowait()
                number += 1
                self._fleet.registry.roll_out(model, number, how)
                ended = self._end_of(model, number, _PATIENCE_SECONDS)
                self._ended.append((ended, how))
                self._say(f"{model}@{number} ({how.kind}): {ended.state}: {ended.reason}")
                if not ended.state.has_ended:
                    return  # what comes after it would wait for it
        except queue.Empty:
            return
        except BaseException as error:  # told by ``run``, which waits for this thread
            self._errors.append(error)

    def _end_of(self, model: str, version: int, patience_seconds: float) -> Rollout:
        """The version's rollout when it has ended, or patience has."""
        until = time.monotonic() + patience_seconds
        while True:
            found = self._fleet.registry.newest_rollout(model)
            is_it = found is not None and found.to_version == version
            if found and is_it and (found.state.has_ended or time.monotonic() > until):
                return found
            if time.monotonic() > until:
                raise TimeoutError(f"{model}@{version} has no rollout")
            time.sleep(_POLL_SECONDS)


def _strategy() -> pb.RolloutStrategy:
    canary = pb.CanaryStrategy(
        steps=[SHARE],
        bake_seconds=BAKE_SECONDS,
        minimum_requests=MINIMUM_REQUESTS,
        maximum_error_rate_increase=0.05,
    )
    return pb.RolloutStrategy(canary=canary)


def _moments(log: Path) -> Moments:
    """When each version ended requests, as the played engine saw it, in order."""
    found: Moments = defaultdict(list)
    for line in log.read_text().splitlines():
        moment, model, version, _ = line.split()
        found[model, int(version)].append(float(moment))
    return found


def _tried(rollout: Rollout, how: Behaviour, moments: Moments) -> Tried:
    name = triton_model_name(TENANT, rollout.model)
    began = rollout.step_time.timestamp() if rollout.step_time else None
    ended = rollout.finish_time.timestamp() if rollout.finish_time else None
    if began is None:
        return Tried(
            rollout.model, rollout.to_version, how, rollout.state, rollout.reason, 0, None, None
        )
    sides = [moments[name, version] for version in (rollout.to_version, rollout.from_version)]
    after = [side[bisect_left(side, began) :] for side in sides]
    enough = None
    if all(len(side) >= MINIMUM_REQUESTS for side in after):
        enough = max(side[MINIMUM_REQUESTS - 1] for side in after) - began
    until = ended if ended is not None else time.time()
    return Tried(
        model=rollout.model,
        version=rollout.to_version,
        how=how,
        state=rollout.state,
        reason=rollout.reason,
        answers=bisect_left(after[0], until),
        enough_seconds=enough,
        end_seconds=None if ended is None else ended - began,
    )
