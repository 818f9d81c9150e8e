"""How a version of the played engine answers: well, or badly in a way that was planted."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

AS_THE_OLD_ONE = "as the old one"
KINDS = ("errors", "slow", "not finite", "wrong tokens", "truncated", "corrupted template")
BROKEN_TEMPLATE = "{% for message in messages %}{{ message.content "
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@dataclass(frozen=True)
class Behaviour:
    """A version's.

    Attributes:
        kind: ``AS_THE_OLD_ONE`` or one of ``KINDS``.
        error_rate: of the requests, before their first token.
        slowness: factor of all its times.
        score: mean natural log-probability of a prompt's tokens; None: it is not a number.
        tokens: of an answer.
    """

    kind: str = AS_THE_OLD_ONE
    error_rate: float = 0.0
    slowness: float = 1.0
    score: float | None = -2.0
    tokens: int = 8

    @property
    def is_bad(self) -> bool:
        return self.kind != AS_THE_OLD_ONE

    @property
    def template(self) -> str:
        return BROKEN_TEMPLATE if self.kind == "corrupted template" else TEMPLATE


def drawn(kind: str, chance: random.Random) -> Behaviour:
    """A version that is bad in that way, or one as good as the old one."""
    if kind == "errors":
        return Behaviour(kind, error_rate=chance.uniform(0.2, 1.0))
    if kind == "slow":
        return Behaviour(kind, slowness=chance.uniform(2.0, 10.0))
    if kind == "not finite":
        return Behaviour(kind, score=None)
    if kind == "wrong tokens":
        return Behaviour(kind, score=-2.0 - chance.uniform(0.3, 6.0))
    if kind == "truncated":
        return Behaviour(kind, tokens=chance.randint(0, 2))
    return Behaviour(kind)


def plan(count_bad: int, count_good: int, kinds: Sequence[str], seed: int) -> list[Behaviour]:
    """All rollouts of a run in the order in which they come: each kind as often as any other."""
    chance = random.Random(seed)
    drawn_kinds = [kinds[index % len(kinds)] for index in range(count_bad)]
    planned = [drawn(kind, chance) for kind in (*drawn_kinds, *[AS_THE_OLD_ONE] * count_good)]
    chance.shuffle(planned)
    return planned


def path_of(folder: Path, triton_model: str, version: int) -> Path:
    return folder / f"{triton_model}@{version}.json"


def write(folder: Path, triton_model: str, version: int, behaviour: Behaviour) -> None:
    """Tell the played engine; before the version is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    path_of(folder, triton_model, version).write_text(json.dumps(asdict(behaviour)))


def read(folder: Path, triton_model: str, version: int) -> Behaviour:
    return Behaviour(**json.loads(path_of(folder, triton_model, version).read_text()))
