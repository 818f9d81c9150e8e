"""Which versions an endpoint's memory is for. Pure.

What serves is pinned: it is loaded whatever it needs. Then comes what is being rolled out, then
rollouts that wait for their turn, and then versions that are only held, those asked for last
first. So what makes room is the held version that was asked for longest ago.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from millrace_registry.domain import Serving, Version, triton_model_name
from millrace_registry.triton_config import EngineSettings

Key = tuple[str, int]  # (model's name on Triton, version)

_MIB = 2**20
_GIB = 2**30
# Measured on Triton 2.51 with OpenVINO GenAI on x86-64, as the resident set of an engine's process
# after 32 requests at once: 199 MiB around 1 MB of weights, 275 MiB around 33 MB (INT8) and
# 414 MiB around 128 MB (FP32).
_ENGINE_BYTES = 256 * _MIB
_WEIGHTS_FACTOR = 1.2


class Rank(IntEnum):
    """Whose memory it is, the first of them first."""

    SERVING = 0
    ROLLING_OUT = 1
    PENDING = 2
    HELD = 3
    LEAVING = 4


@dataclass(frozen=True)
class Claim:
    """What one version asks of the endpoint's memory.

    Attributes:
        asked: seconds; of a held version, when it was asked for last, and of a rollout, since
            when it waits.
        is_loaded: it has its memory already.
    """

    key: Key
    rank: Rank
    need_bytes: int
    asked: float = 0.0
    is_loaded: bool = False

    @property
    def is_pinned(self) -> bool:
        """It serves, or requests may go to it now: it is not taken out for others."""
        return self.rank == Rank.SERVING or (self.rank == Rank.ROLLING_OUT and self.is_loaded)

    @property
    def makes_room(self) -> bool:
        """It was held until now, and has no place any more."""
        return self.rank == Rank.HELD or (self.rank == Rank.PENDING and self.is_loaded)


@dataclass(frozen=True)
class Memory:
    """The memory of one endpoint: what it is to be at most, and what versions claim of it."""

    endpoint: str
    budget_bytes: int
    claims: Sequence[Claim] = ()


@dataclass(frozen=True)
class Plan:
    """What becomes of each version.

    Attributes:
        admitted: may be loaded, or stay so.
        waiting: have a place as soon as others have left; why not yet.
        refused: have none; why.
        evicted: of those, the ones that were held: their hold is to end. The one that was asked
            for longest ago is the first.
        planned_bytes: of what is loaded, or may be loaded now.
        pinned_bytes: of what is loaded whatever the budget is.
    """

    budget_bytes: int = 0
    admitted: frozenset[Key] = frozenset()
    waiting: Mapping[Key, str] = field(default_factory=dict)
    refused: Mapping[Key, str] = field(default_factory=dict)
    evicted: tuple[Key, ...] = ()
    planned_bytes: int = 0
    pinned_bytes: int = 0

    @property
    def is_over(self) -> bool:
        """What is pinned alone needs more than there is."""
        return self.pinned_bytes > self.budget_bytes


def plan(claims: Sequence[Claim], budget_bytes: int) -> Plan:
    """Share out the memory; one claim a version."""
    placed, refused = _place(claims, budget_bytes)
    admitted, waiting, planned = _admit(placed, claims, budget_bytes)
    return Plan(
        budget_bytes=budget_bytes,
        admitted=frozenset(admitted),
        waiting=waiting,
        refused={claim.key: reason for claim, reason in refused.items()},
        evicted=tuple(claim.key for claim in reversed(list(refused)) if claim.makes_room),
        planned_bytes=planned,
        pinned_bytes=sum(claim.need_bytes for claim in claims if claim.is_pinned),
    )


def held_claim(version: Version, serving: Serving) -> Claim:
    """Of a version that somebody asks for by name."""
    key = (triton_model_name(version.tenant, version.model), version.number)
    need = need_bytes(version.artifact.size_bytes, EngineSettings(), serving)
    return Claim(key, Rank.HELD, need)


def room_for_held(memory: Memory, claim: Claim, in_use_since: float) -> str:
    """Why a version that somebody asks for by name cannot be loaded; empty: it can.

    Held versions make room for it, but for those that were asked for after ``in_use_since``.
    """
    if any(c.key == claim.key and c.is_loaded and c.rank != Rank.LEAVING for c in memory.claims):
        return ""  # it has its place
    others = [c for c in memory.claims if c.key != claim.key and c.rank != Rank.LEAVING]
    in_use = [c for c in others if c.rank != Rank.HELD or c.asked > in_use_since]
    used = sum(c.need_bytes for c in in_use)
    if used + claim.need_bytes <= memory.budget_bytes:
        return ""
    return _too_little(claim.need_bytes, used, memory.budget_bytes, "are in use")


def need_bytes(artifact_bytes: int, settings: EngineSettings, serving: Serving) -> int:
    """What a version is expected to take at most, all its engines together.

    The cache of keys and values counts whole: engines keep prefixes in it until it is full.
    """
    cache = serving.cache_gibibytes
    cache_bytes = (settings.cache_gibibytes if cache is None else cache) * _GIB
    engine = _ENGINE_BYTES + int(_WEIGHTS_FACTOR * artifact_bytes) + cache_bytes
    return (serving.instance_count or 1) * engine


def shown(size_bytes: int) -> str:
    """A size for people to read."""
    return f"{size_bytes / _GIB:.2f} GiB"


def _place(
    claims: Collection[Claim], budget_bytes: int
) -> tuple[Sequence[Claim], Mapping[Claim, str]]:
    """Who has a place once all that is to leave has left, and who has none, the first first."""
    placed: list[Claim] = []
    refused: dict[Claim, str] = {}
    used = 0
    staying = (claim for claim in claims if claim.rank != Rank.LEAVING)
    for claim in sorted(staying, key=_turn):
        if claim.is_pinned or used + claim.need_bytes <= budget_bytes:
            placed.append(claim)
            used += claim.need_bytes
        else:
            why = "are for what serves or comes before it"
            refused[claim] = _too_little(claim.need_bytes, used, budget_bytes, why)
    return placed, refused


def _admit(
    placed: Sequence[Claim], claims: Collection[Claim], budget_bytes: int
) -> tuple[Collection[Key], Mapping[Key, str], int]:
    """Who may be loaded right now: (admitted, waiting, planned bytes).

    What has no place any more keeps its memory until its answers have ended. What serves does not
    wait for that.
    """
    occupied = sum(claim.need_bytes for claim in claims if claim.is_loaded)
    admitted: list[Key] = []
    waiting: dict[Key, str] = {}
    for claim in placed:
        fits = claim.is_loaded or occupied + claim.need_bytes <= budget_bytes
        if fits or claim.is_pinned:
            admitted.append(claim.key)
            occupied += 0 if claim.is_loaded else claim.need_bytes
        else:
            waiting[claim.key] = (
                f"it needs {shown(claim.need_bytes)} of memory, which are free once what leaves "
                "the endpoint has ended its answers"
            )
    return admitted, waiting, occupied


def _too_little(need_bytes: int, used_bytes: int, budget_bytes: int, why: str) -> str:
    return (
        f"it needs {shown(need_bytes)} of memory, and {shown(used_bytes)} of the endpoint's "
        f"{shown(budget_bytes)} {why}"
    )


def _turn(claim: Claim) -> tuple[bool, Rank, float]:
    """Pinned ones, rollouts by the time that they wait, held ones by when they were asked for."""
    last_first = claim.rank == Rank.HELD
    return not claim.is_pinned, claim.rank, -claim.asked if last_first else claim.asked
