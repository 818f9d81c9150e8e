"""Which endpoints answer, learnt from the requests themselves; pure but for its clock.

A version's endpoint that fails before its first token is left alone for 1 s, then 2, 4 … 30 s,
each time until one request has tried it: the others do not go there while that one is under way.
What is known is of one version at one endpoint: a version that was unloaded there says nothing
about its neighbours.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 30.0
_MOST_REMEMBERED = 1000
_NONE: Mapping[tuple[int, str], float] = {}


@dataclass
class _Ejection:
    until_seconds: float
    seconds: float
    is_tried: bool = False


class Health:
    """The endpoints that failed of late, by Triton's model name, version and endpoint."""

    def __init__(self, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic_seconds
        self._ejections: dict[tuple[str, int, str], _Ejection] = {}

    def ejected(self, triton_model: str) -> Mapping[tuple[int, str], float]:
        """A model's (version, endpoint) that are not to be asked now, and until when."""
        if not self._ejections:
            return _NONE
        now = self._now()
        return {
            (version, endpoint): ejection.until_seconds
            for (model, version, endpoint), ejection in self._ejections.items()
            if model == triton_model and ejection.until_seconds > now
        }

    def asked(self, triton_model: str, version: int, endpoint: str) -> None:
        """A request goes there. If it was ejected the request tries it, alone for a while."""
        if self._ejections:
            ejection = self._ejections.get((triton_model, version, endpoint))
            if ejection is not None:
                ejection.until_seconds = self._now() + ejection.seconds
                ejection.is_tried = True

    def answered(self, triton_model: str, version: int, endpoint: str) -> None:
        """It works: it is as good as any."""
        if self._ejections:
            self._ejections.pop((triton_model, version, endpoint), None)

    def failed(self, triton_model: str, version: int, endpoint: str) -> None:
        """It failed before its first token.

        Requests that were under way when it was ejected say nothing new by failing too.
        """
        place, now = (triton_model, version, endpoint), self._now()
        ejection = self._ejections.get(place)
        if ejection is None:
            self._forget_old(now)
            self._ejections[place] = _Ejection(now + _FIRST_SECONDS, _FIRST_SECONDS)
        elif ejection.is_tried:
            seconds = min(2 * ejection.seconds, _LONGEST_SECONDS)
            self._ejections[place] = _Ejection(now + seconds, seconds)

    def _forget_old(self, now: float) -> None:
        """Drop what is over, and was not asked since: mostly versions that are gone."""
        if len(self._ejections) >= _MOST_REMEMBERED:
            self._ejections = {
                place: ejection
                for place, ejection in self._ejections.items()
                if ejection.until_seconds + _LONGEST_SECONDS > now
            }
