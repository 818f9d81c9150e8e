"""The controller: brings one Triton endpoint to what is desired, a look at a time.

Each look derives everything from the database and from what Triton says of itself, and takes the
next steps of every rollout (``rollout.py``). So it does not matter what was missed: an endpoint
that restarted empty is loaded again, a version that should not be there is taken out.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime, timedelta

from millrace_registry import rollout as rules
from millrace_registry import served_parity
from millrace_registry.analysis import asked_of
from millrace_registry.collector import Collector
from millrace_registry.control_metrics import READY, observe_duration
from millrace_registry.control_store import ControlStore, Desired
from millrace_registry.domain import (
    Rollout,
    RolloutState,
    Version,
    VersionState,
    triton_model_name,
    utc_now,
)
from millrace_registry.guarded import GuardedRepository, GuardedTriton, ModelControl
from millrace_registry.health import Asked, Health
from millrace_registry.provenance import DAMAGED, Provenance, damage_of
from millrace_registry.published import publish_routes
from millrace_registry.repository import ModelRepository, read_interface
from millrace_registry.room import Room
from millrace_registry.scoring import AtOnce
from millrace_registry.strategies import Stage
from millrace_registry.taking_out import take_out
from millrace_registry.traffic import Seen, Traffic
from millrace_registry.transitions import RolloutChanged
from millrace_registry.triton import Loaded, LoadFailed, TritonUnavailable
from millrace_runtime import storage, telemetry
from millrace_runtime.content import ContentStore

LOG = logging.getLogger(__name__)

QUESTIONS = ("import os\n", "def main(", "class Error(Exception):\n", "Hello")
_CHECK_SECONDS = 5.0
_RETRY_SECONDS, _REPAIR_SECONDS = 3.0, 1.0
_SUPPLY_SECONDS = 0.5  # of a look, with questions to one rollout's versions
_FAILED_CHECKS = 3
_TRAFFIC_KEPT = timedelta(days=1)
_TIDY_SECONDS = 3600.0
_BREAK = timedelta(seconds=30)  # between two looks: what was not watched says nothing

Key = tuple[str, int]  # (model's name on Triton, version)


class Controller:
    """``look`` is called again and again, by one thread."""

    def __init__(
        self,
        store: ControlStore,
        triton: ModelControl,
        repository: ModelRepository,
        content: ContentStore,
        *,
        life: str,
        drain: timedelta,
        ring: Callable[[], None],
        scoring: Executor | None = None,
        room: Room | None = None,
        provenance: Provenance | None = None,
        now: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._triton = GuardedTriton(triton, store.require)
        self._repository = GuardedRepository(repository, store.require)
        self._content = content
        self._provenance = provenance or Provenance(content)
        self._life = life
        self._drain = drain
        self._ring = ring
        self._now = now
        self._monotonic = monotonic
        self._health: dict[Key, Health] = {}
        self._asked = Asked()
        self._room = room or Room()
        self._collector = Collector(store.evidence, self._triton, content, scoring or AtOnce())
        self.stop = self._collector.stop
        self._watched_since: datetime | None = None
        self._looked_until: datetime | None = None
        self._tidied_at: float | None = None
        self._knows_who_answers = False  # since this process, or Triton, was away

    def look(self) -> None:
        """Compare, and act where desired and observed differ.

        Raises:
            LeaseLost: another registry took over amid the look.
        """
        now = self._now()
        if self._looked_until is not None and now - self._looked_until > _BREAK:
            self._watched_since = None  # this process was stopped, or its machine asleep
        try:
            self._look()
        finally:
            self._looked_until = self._now()

    def _look(self) -> None:
        index = self._index()
        if index is None:
            self._watched_since, self._knows_who_answers = None, False
            return
        self._watched_since = self._watched_since or self._now()
        self._forget_what_is_gone(index)
        present = self._desired()
        self._room.share_out(self._store, present, index)
        advanced = [self._advance(each, found) for each in present for found in each.rollouts]
        wanted = self._desired()
        if any(advanced) and self._knows_who_answers:
            # Who hears of a step may act on it while the next version is loaded.
            self._write_routes(wanted)
        for desired in wanted:
            try:
                self._bring_in(desired, index)
            except OSError as error:
                self._hinder(desired, error)
        index = self._triton.index()
        for desired in wanted:
            self._check(desired, index)
        # Read once more: a version may have been quarantined while it was brought in.
        wanted = self._desired()
        self._write_routes(wanted)
        self._knows_who_answers = True
        # What is taken out now, no route leads to.
        listed = {_name(desired): {v.number for v in desired.versions} for desired in wanted}
        take_out(self._triton, self._repository, listed, index)
        self._tidy()
        READY.set(sum(1 for health in self._health.values() if health.answered_at))

    def _index(self) -> Mapping[Key, Loaded] | None:
        """What Triton runs; None: it is not ours to control, or does not answer."""
        if not self._store.hold():
            return None
        try:
            return self._triton.index()
        except TritonUnavailable as error:
            LOG.info("Triton does not answer: %s", error)
            self._health.clear()
            return None

    def _desired(self) -> list[Desired]:
        return self._store.desired(self._now() - self._drain)

    def _forget_what_is_gone(self, index: Mapping[Key, Loaded]) -> None:
        """Forget that a version answered when it is not loaded any more; errors are kept."""
        for key in list(self._health):
            is_ready = key in index and index[key].state == "READY"
            if not is_ready and self._health[key].answered_at:
                del self._health[key]

    def _tidy(self) -> None:
        """Once in a while, drop the counters of gateways and controllers that have gone."""
        now = self._monotonic()
        if self._tidied_at is None or now - self._tidied_at >= _TIDY_SECONDS:
            self._tidied_at = now
            self._store.forget_traffic(self._now() - _TRAFFIC_KEPT)
            self._collector.tidy(self._now() - _TRAFFIC_KEPT)

    def _advance(self, desired: Desired, found: Rollout) -> bool:
        """Take a rollout's next step, if there is one; whether there was."""
        seen = self._seen(found)
        observed = self._observe(desired, found, seen)
        action = rules.next_action(found, desired.deployment.strategy, observed)
        if isinstance(action, rules.Wait):
            self._show(found, observed, seen.since(found.before))
            if found.state == RolloutState.PENDING and observed.no_room:
                self._explain(found, f"waits for memory: {observed.no_room}")
            return False
        LOG.info("%s@%d: %s", found.model, found.to_version, action)
        with telemetry.span(
            f"rollout {type(action).__name__.lower()}",
            traceparent=found.traceparent,
            attributes={"millrace.rollout": found.name, "millrace.reason": str(action)},
        ):
            try:
                shown = self._collector.shown(found, observed.evidence)
                self._apply(desired, shown, action, seen)
            except RolloutChanged as error:
                LOG.info("nothing done: %s", error)
        self._ring()
        return True

    def _seen(self, found: Rollout) -> Seen:
        """All that has been seen of a rollout's versions, whenever that was."""
        traffic = self._store.traffic(found.tenant, found.model)
        return Seen(
            new=traffic.get(found.to_version, Traffic()),
            old=traffic.get(found.from_version, Traffic()),
            shadow=self._store.comparison(found),
        )

    def _show(self, found: Rollout, observed: rules.Observed, seen: Seen) -> None:
        """Have users see what a rollout waits with."""
        is_first_answer = found.state.is_active and observed.is_ready and found.ready_time is None
        shown = self._collector.shown(found, observed.evidence)
        is_new = (seen, shown.evidence) != (found.seen, found.evidence)
        if is_first_answer or (found.state.is_judged and is_new):
            with contextlib.suppress(RolloutChanged):
                self._store.count(shown, seen)

    def _observe(self, desired: Desired, found: Rollout, seen: Seen) -> rules.Observed:
        others = [other for other in desired.rollouts if other.id != found.id]
        health = self._health.get((_name(desired), found.to_version), Health())
        version = next((v for v in desired.versions if v.number == found.to_version), None)
        is_fit = version is not None and version.state != VersionState.QUARANTINED
        gone = found.state.is_active and not is_fit
        no_place = self._room.has_no_place(found) if found.state.is_active else ""
        return rules.Observed(
            now=self._now(),
            newer_waits=any(
                other.state == RolloutState.PENDING and other.to_version > found.to_version
                for other in others
            ),
            another_active=any(other.state.is_active for other in others),
            is_ready=bool(health.answered_at),
            load_error="it was quarantined" if gone else health.error or no_place,
            no_room=self._room.missing(found),
            mismatch=self._collector.mismatch(found, version) if health.answered_at else "",
            new=seen.new,
            old=seen.old,
            watched_since=self._watched_since,
            evidence=self._collector.evidence(found, seen.since(found.before)),
            analysis=asked_of(desired.deployment.analysis, version),
            alone=desired.model.serving_version == 0,
            serves=desired.model.serving_version == found.to_version,
            old_is_gone=not any(
                v.number == found.from_version and v.state != VersionState.QUARANTINED
                for v in desired.versions
            ),
        )

    def _apply(self, desired: Desired, found: Rollout, action: rules.Action, seen: Seen) -> None:
        in_step = seen.since(found.before)
        if isinstance(action, rules.Supersede):
            self._store.supersede(found)
        elif isinstance(action, rules.Load):
            self._health.pop((_name(desired), found.to_version), None)
            self._store.start_loading(found, desired.model.serving_version)
        elif isinstance(action, rules.EnterStep):
            stage = rules.stage_of(desired.deployment.strategy, action.state) or Stage()
            self._store.enter_step(self._collector.entering(found), action, stage, seen)
        elif isinstance(action, rules.Settle):
            self._store.settle(found, in_step, action.reason)
            observe_duration(found, "settled", self._now())
        elif isinstance(action, rules.Reverse):
            self._store.reverse(found, in_step, action.reason)
            observe_duration(found, "reversed", self._now())

    def _bring_in(self, desired: Desired, index: Mapping[Key, Loaded]) -> None:
        """Have Triton run the versions that are wanted, and let go of the others."""
        name = _name(desired)
        kept = [
            v for v in desired.versions if self._is_wanted(desired, v, index.get((name, v.number)))
        ]
        missing = [v for v in kept if index.get((name, v.number), Loaded("", "")).state != "READY"]
        serving = desired.deployment.serving
        if missing or not self._repository.is_listed(name, [v.number for v in kept], serving):
            # Triton is told to load: it reads the missing, and of the others each whose files
            # are no longer those that it has read.
            kept = [v for v in kept if self._prepare(name, v)]
            missing = [v for v in missing if v in kept]
        if not kept:
            if any(model == name and each.state == "READY" for (model, _), each in index.items()):
                self._triton.unload(name)
            return
        if self._repository.list_versions(name, [v.number for v in kept], serving) or missing:
            self._load(name, missing)

    def _is_wanted(self, desired: Desired, version: Version, loaded: Loaded | None) -> bool:
        if not desired.keeps(version):  # drains, and is not loaded again for that
            return loaded is not None and loaded.state == "READY"
        health = self._health.get((_name(desired), version.number), Health())
        if health.error and loaded is not None and loaded.state == "READY":
            return False  # Triton says READY of an engine that was killed; it must go first
        if (loaded is None or loaded.state != "READY") and not self._room.admits(version):
            return False
        return not health.error or health.retry_at <= self._monotonic()

    def _prepare(self, name: str, version: Version) -> bool:
        """Verify a version's artifact and put it where Triton finds it; False: it is damaged.

        Raises:
            OSError: the disk is full or fails, which says nothing of the version.
        """
        try:
            artifact = self._provenance.artifact(version)
            if version.interface is None:
                self._store.learn_interface(version, read_interface(artifact))
        except (*DAMAGED, ValueError, KeyError) as error:
            LOG.error("%s is not to be served: %s", version.name, damage_of(error))
            self._store.quarantine(version, damage_of(error))
            self._ring()
            return False
        self._repository.add_version(name, version.number, artifact)
        return True

    def _hinder(self, desired: Desired, error: OSError) -> None:
        """The disk is at fault: what is loaded goes on, and what is being loaded waits."""
        LOG.error("%s waits for the disk: %s", _name(desired), error)
        self._watched_since = self._now()  # until now, silence said nothing of any version
        reason = f"{storage.reason_of(error) or storage.ERROR}: waiting for the disk: {error}"
        for found in desired.rollouts:
            if found.state == RolloutState.LOADING:
                self._explain(found, reason)

    def _explain(self, found: Rollout, reason: str) -> None:
        """Have users see why a rollout waits."""
        if found.reason != reason:
            with contextlib.suppress(RolloutChanged):
                self._store.explain(found, reason)

    def _load(self, name: str, missing: Sequence[Version]) -> None:
        try:
            self._triton.load(name)
        except LoadFailed as error:
            LOG.error("%s does not load as it is to be: %s", name, error)
            index = self._triton.index()
            for version in missing:
                loaded = index.get((name, version.number))
                if not self._repository.has_version(name, version.number):
                    # Of a registry that was stopped amid its look; it says nothing of the version.
                    LOG.warning("%s: its folder was taken away; it is written again", version.name)
                elif loaded is None or loaded.state != "READY":
                    health = self._health.setdefault((name, version.number), Health())
                    health.error = (loaded.reason if loaded else "") or str(error)
                    health.retry_at = self._monotonic() + _RETRY_SECONDS
                    LOG.error("%s does not load: %s", version.name, health.error)

    def _check(self, desired: Desired, index: Mapping[Key, Loaded]) -> None:
        """Ask the versions that are loaded, those that are judged more often."""
        name = _name(desired)
        for version in desired.versions:
            loaded = index.get((name, version.number))
            if loaded is None or loaded.state != "READY":
                continue
            if not desired.keeps(version):
                continue
            health = self._health.setdefault((name, version.number), Health())
            is_due = self._monotonic() - health.answered_at >= _CHECK_SECONDS
            if not health.answered_at or is_due:
                self._ask(name, version, health)
        for found in desired.rollouts:
            if found.state.is_judged:
                self._supply_traffic(desired, found)
            self._collector.ask(found, name, desired.versions, self._health)

    def _supply_traffic(self, desired: Desired, found: Rollout) -> None:
        """Ask questions where traffic brings too few for the two versions to be compared."""
        stage = rules.stage_of(desired.deployment.strategy, found.state)
        if stage is None:  # the deployment was changed; the rollout moves on at the next look
            return
        observed = self._observe(desired, found, self._seen(found))
        new, old = rules.questions_missing(found, stage, observed)
        until = self._monotonic() + _SUPPLY_SECONDS  # what is slow, or silent, holds up all else
        for turn in range(max(new, old)):
            for version in desired.versions:
                missing = {found.to_version: new, found.from_version: old}.get(version.number, 0)
                health = self._health.setdefault((_name(desired), version.number), Health())
                if turn < missing and not health.error and self._monotonic() < until:
                    self._ask(_name(desired), version, health)

    def _ask(self, name: str, version: Version, health: Health) -> None:
        key = (version.tenant, version.model, version.number)
        count = self._asked.counters.get(key, Traffic()).requests
        error = self._triton.ask(name, version.number, QUESTIONS[count % len(QUESTIONS)])
        self._asked.count(key, bool(error))
        self._store.report_traffic(self._life, [(*key, self._asked.counters[key])])
        if not error and not health.answered_at and version.state == VersionState.ROLLING_OUT:
            learn = self._store.learn_measurements
            error = served_parity.measure(self._triton, name, version, self._content, learn)
        if not error:
            health.answered_at, health.failed_checks, health.error = self._monotonic(), 0, ""
            return
        health.failed_checks += 1
        LOG.warning("%s did not answer (%d): %s", version.name, health.failed_checks, error)
        if health.failed_checks >= _FAILED_CHECKS:
            health.answered_at, health.failed_checks, health.error = 0.0, 0, error
            health.retry_at = self._monotonic() + _REPAIR_SECONDS

    def _write_routes(self, wanted: Sequence[Desired]) -> None:
        publish_routes(
            self._store, wanted, {key for key, h in self._health.items() if h.answered_at}
        )


def _name(desired: Desired) -> str:
    return triton_model_name(desired.model.tenant, desired.model.id)
