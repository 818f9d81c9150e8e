"""The memory of one endpoint, as its controller shares it out (``memory.py`` has the rules)."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime

from millrace_registry.control_metrics import MEMORY_BUDGET, MEMORY_PLANNED
from millrace_registry.control_store import ControlStore, Desired
from millrace_registry.domain import Rollout, RolloutState, Version, VersionState, triton_model_name
from millrace_registry.endpoint_store import EndpointStore, VersionKey
from millrace_registry.memory import Claim, Key, Plan, Rank, need_bytes, plan, shown
from millrace_registry.triton import Loaded
from millrace_registry.triton_config import EngineSettings

LOG = logging.getLogger(__name__)

_OBSERVE_SECONDS = 5.0


class Room:
    """Who has a place on the endpoint, and who has to wait or to go.

    Args:
        budget_bytes: None: there is no limit.
        observe: what loaded versions were seen to take, by (model on Triton, version); empty where
            that cannot be seen.
    """

    def __init__(
        self,
        budget_bytes: int | None = None,
        engine: EngineSettings = EngineSettings(),
        observe: Callable[[], Mapping[Key, int]] = dict,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._engine = engine
        self._observe = observe
        self._monotonic = monotonic
        self._observed_at: float | None = None
        self._observed: Mapping[Key, int] = {}
        self._needs: dict[Key, int] = {}
        self._plan: Plan | None = None

    def share_out(
        self, store: ControlStore, present: Sequence[Desired], index: Mapping[Key, Loaded]
    ) -> None:
        """Decide who is loaded, and end the holds of those that make room."""
        if self._budget_bytes is None:
            return
        self._observe_engines()
        endpoints = store.endpoints
        loaded = {key for key, each in index.items() if each.state not in ("", "UNAVAILABLE")}
        claims = self._claims(present, loaded, endpoints)
        found = plan(claims, self._budget_bytes)
        self._say(found, endpoints.endpoint)
        numbers = {(_name(each), v.number): v for each in present for v in each.versions}
        for key in found.evicted:
            LOG.info("%s makes room: %s", numbers[key].name, found.refused[key])
        evicted = [numbers[key] for key in found.evicted]
        endpoints.end_holds([(v.tenant, v.model, v.number) for v in evicted])
        endpoints.write_memory(self._budget_bytes, claims)
        self._plan = found

    def missing(self, rollout: Rollout) -> str:
        """Why a rollout's version cannot be loaded now; empty: it can."""
        key = (triton_model_name(rollout.tenant, rollout.model), rollout.to_version)
        if self._plan is None:
            return ""
        return self._plan.refused.get(key) or self._plan.waiting.get(key, "")

    def has_no_place(self, rollout: Rollout) -> str:
        """Why a rollout's version will not be loaded, however long it waits; empty: it may be."""
        key = (triton_model_name(rollout.tenant, rollout.model), rollout.to_version)
        return "" if self._plan is None else self._plan.refused.get(key, "")

    def admits(self, version: Version) -> bool:
        """Whether Triton may be told to load a version now."""
        key = (triton_model_name(version.tenant, version.model), version.number)
        return self._plan is None or key in self._plan.admitted

    def _observe_engines(self) -> None:
        now = self._monotonic()
        if self._observed_at is None or now - self._observed_at >= _OBSERVE_SECONDS:
            self._observed_at, self._observed = now, self._observe()

    def _claims(
        self, present: Sequence[Desired], loaded: Collection[Key], endpoints: EndpointStore
    ) -> Sequence[Claim]:
        asked = endpoints.asked_times() if any(each.held for each in present) else {}
        is_pending = any(r.state == RolloutState.PENDING for d in present for r in d.rollouts)
        pending = endpoints.pending_versions() if is_pending else {}
        claims: dict[Key, Claim] = {}
        for desired in present:
            # Whose rollout waits may be held already: then it has the place of a rollout.
            for claim in self._claims_of(desired, loaded, asked):
                claims[claim.key] = claim
            for claim in self._waiting(desired, loaded, pending):
                claims[claim.key] = claim
        for key in set(loaded) - set(claims):  # nobody wants it, and it has not left yet
            claims[key] = Claim(key, Rank.LEAVING, self._needs.get(key, 0), is_loaded=True)
        self._needs = {claim.key: claim.need_bytes for claim in claims.values()}
        return list(claims.values())

    def _claims_of(
        self, desired: Desired, loaded: Collection[Key], asked: Mapping[VersionKey, datetime]
    ) -> Iterator[Claim]:
        """Of the versions that are wanted or still there, and of the rollout whose turn is next."""
        rolled_out = {r.to_version for r in desired.rollouts if r.state.is_active}
        for version in desired.versions:
            key = (_name(desired), version.number)
            rank = _rank(desired, version, rolled_out)
            is_gone = rank == Rank.LEAVING and key not in loaded
            if version.state == VersionState.QUARANTINED or is_gone:
                continue
            ends = asked.get((version.tenant, version.model, version.number))
            at = ends.timestamp() if rank == Rank.HELD and ends else 0.0
            yield self._claim(desired, version, rank, at, key in loaded)

    def _waiting(
        self, desired: Desired, loaded: Collection[Key], versions: Mapping[VersionKey, Version]
    ) -> Iterator[Claim]:
        pending = [r for r in desired.rollouts if r.state == RolloutState.PENDING]
        if not pending or any(r.state.is_active for r in desired.rollouts):
            return
        found = max(pending, key=lambda r: r.to_version)
        version = versions.get((found.tenant, found.model, found.to_version))
        if version is not None:
            is_loaded = (_name(desired), version.number) in loaded
            since = found.create_time.timestamp()
            yield self._claim(desired, version, Rank.PENDING, since, is_loaded)

    def _claim(
        self, desired: Desired, version: Version, rank: Rank, asked: float, is_loaded: bool
    ) -> Claim:
        key = (_name(desired), version.number)
        serving = desired.deployment.serving
        need = need_bytes(version.artifact.size_bytes, self._engine, serving)
        if is_loaded:
            need = self._observed.get(key, need)
        return Claim(key, rank, need, asked, is_loaded)

    def _say(self, found: Plan, endpoint: str) -> None:
        MEMORY_BUDGET.labels(endpoint).set(found.budget_bytes)
        MEMORY_PLANNED.labels(endpoint).set(found.planned_bytes)
        if found.is_over and not (self._plan is not None and self._plan.is_over):
            LOG.error(
                "what serves needs %s, more than the memory budget of %s (%s); it is loaded all "
                "the same, and nothing else is",
                shown(found.pinned_bytes),
                shown(found.budget_bytes),
                endpoint,
            )


def _rank(desired: Desired, version: Version, rolled_out: Collection[int]) -> Rank:
    if version.number in rolled_out:
        return Rank.ROLLING_OUT
    if version.state == VersionState.SERVING:
        return Rank.SERVING
    return Rank.HELD if version.number in desired.held else Rank.LEAVING


def _name(desired: Desired) -> str:
    return triton_model_name(desired.model.tenant, desired.model.id)
