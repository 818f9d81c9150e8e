"""How quickly a piece of work goes, and when it will be done."""

HALF_LIFE_SECONDS = 60.0


class Pace:
    """Steps a second, smoothed: what was a minute ago weighs half as much as what is now.

    Both the steps and the seconds that they took fade, so that the rate is always that of some
    stretch of time, and a burst or a pause moves it no more than its length deserves. Work that
    was taken up again from an earlier step adds neither: nobody saw how long those steps took.
    """

    def __init__(self, half_life_seconds: float = HALF_LIFE_SECONDS) -> None:
        self._half_life_seconds = half_life_seconds
        self._steps = 0.0
        self._seconds = 0.0
        self._last: tuple[int, float] | None = None

    def observe(self, step: int, at_seconds: float) -> None:
        """At a moment of one clock, ``step`` steps were done."""
        last, self._last = self._last, (step, at_seconds)
        if last is None or step < last[0] or at_seconds < last[1]:
            return
        if step == last[0]:
            self._last = last  # the time of the step under way counts when it is done
            return
        fade = 0.5 ** ((at_seconds - last[1]) / self._half_life_seconds)
        self._steps = self._steps * fade + (step - last[0])
        self._seconds = self._seconds * fade + (at_seconds - last[1])

    def change_clock(self) -> None:
        """What is observed from now on is told by another clock."""
        self._last = None

    @property
    def steps_per_second(self) -> float | None:
        """None until two moments were seen."""
        return self._steps / self._seconds if self._seconds > 0 and self._steps > 0 else None

    def seconds_left(self, step: int, total: int, now_seconds: float) -> float | None:
        """Until ``total`` steps are done, counting down between two of them.

        ``now_seconds`` is of the clock that ``observe`` was last told.
        """
        rate = self.steps_per_second
        if rate is None or total <= 0:
            return None
        since = max(0.0, now_seconds - self._last[1]) if self._last else 0.0
        return max(0.0, max(total - step, 0) / rate - since)
