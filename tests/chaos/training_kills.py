"""Whom and when to kill in a training."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LONGEST_WRITING_SECONDS = 0.1


@dataclass(frozen=True)
class Kill:
    """Whom SIGKILL is for, and when.

    Attributes:
        whom: "rank", "launcher", "job" (its whole group) or "service".
        when: "step", "moment", "writing" or "point".
        step: not before it was heard of ("step", "writing").
        seconds: after the job began ("moment"), or after a file appeared ("writing").
        point, hit: of the crash point; the process that passes it kills itself.
    """

    whom: str
    when: str
    step: int = 0
    seconds: float = 0.0
    point: str = ""
    hit: int = 1

    def __str__(self) -> str:
        where = {"step": f"step {self.step}", "point": f"{self.point} (pass {self.hit})"}
        wrote = f"{1000 * self.seconds:.0f} ms"
        where |= {"moment": wrote, "writing": f"{wrote} into writing after step {self.step}"}
        return f"{self.whom} at {where[self.when]}"


def draw_kills(
    name: str, steps: int, seconds: float, points: Sequence[tuple[str, int]], draw: random.Random
) -> Iterator[Kill]:
    """For the stage ``name``, whose job takes ``steps`` and ``seconds`` and passes ``points``.

    Kills without end; those at points are as many as all others.
    """
    whoms = ("rank", "rank", "job", "service", *(() if name == "tuner" else ("launcher",)))
    while True:
        whom, step = draw.choice(whoms), draw.randint(1, steps - 1)
        when = draw.choice(("step", "moment", "writing", "point", "point"))
        if when == "point":
            point, hit = draw.choice(points)
            yield Kill("rank", when, point=point, hit=hit)
        elif when == "moment":
            yield Kill(whom, when, seconds=draw.uniform(0, seconds))
        else:
            writing = draw.uniform(0, _LONGEST_WRITING_SECONDS) if when == "writing" else 0.0
            yield Kill(whom, when, step, writing)
