"""Use cases: what follows from a finished artifact, and what users ask for and about."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from millrace_registry.catalogue import Catalogue, Lineage
from millrace_registry.domain import (
    CHAMPION,
    EVERY,
    Content,
    Deployment,
    HoldRule,
    LineageEdge,
    LineageNode,
    Model,
    RequestKey,
    Version,
    utc_now,
)
from millrace_registry.engine import HERE, unserved_reason
from millrace_registry.memory import held_claim, room_for_held
from millrace_registry.provenance import DAMAGED, Provenance, damage_of
from millrace_registry.rollout_app import RolloutApp
from millrace_registry.strategy_rules import require_rising_steps
from millrace_runtime import names, paging
from millrace_runtime.content import ContentStore
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted

_OF_STEP = re.compile(r"(?P<model>.+):ckpt-step-(?P<step>[0-9]{1,18})")


class RegistryApp(RolloutApp):
    """``ring`` publishes facts; ``ring_controller`` has Triton looked at. Both only speed
    things up."""

    def __init__(
        self,
        catalogue: Catalogue,
        lineage: Lineage,
        content: ContentStore,
        *,
        ring: Callable[[], None],
        ring_controller: Callable[[], None],
        hold_rule: HoldRule = HoldRule(),
        engines: Collection[str] = HERE,
        provenance: Provenance | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(catalogue, ring, ring_controller)
        self._hold_rule = hold_rule
        self._engines = engines
        self._lineage = lineage
        self._provenance = provenance or Provenance(content)
        self._now = now

    def artifact_finished(
        self,
        tenant: str,
        *,
        compression: str,
        target: str,
        artifact: Content,
        checkpoint: Mapping[str, Any],
        measurements: Mapping[str, Any],
        base_model: str,
        traceparent: str,
        is_by_hand: bool = False,
        compress_start_time: datetime | None = None,
        compress_finish_time: datetime | None = None,
    ) -> None:
        """An artifact that passed its gate becomes a version, with a rollout to it. Once.

        ``is_by_hand``: no deployment, but a person asked for it, whatever serves.
        """
        if self._catalogue.version_of_compression(tenant, compression) is not None:
            return
        if self._catalogue.ensure_deployment(tenant, str(checkpoint["model"])) is None:
            return  # the model was deleted: spare reading the artifact
        version = Version(
            tenant=tenant,
            model=str(checkpoint["model"]),
            number=0,
            target=target,
            artifact=artifact,
            checkpoint=checkpoint,
            measurements=measurements,
            compression=compression,
            create_time=self._now(),
            traceparent=traceparent,
            state_reason=unserved_reason(target, self._engines),
            compress_start_time=compress_start_time,
            compress_finish_time=compress_finish_time,
        )
        self._catalogue.register(version, base_model, self._damage(version), is_by_hand)
        self._ring()
        self._ring_controller()

    def _damage(self, version: Version) -> str:
        """Why a version may not be served; empty: its artifact is as committed, and signed."""
        try:
            self._provenance.artifact(version)
        except (*DAMAGED, OSError) as error:
            return damage_of(error)
        return ""

    def learn(
        self,
        nodes: Sequence[LineageNode],
        edges: Sequence[LineageEdge],
        times: dict[str, datetime] | None = None,
    ) -> None:
        """Remember what a fact tells of where things came from."""
        self._lineage.add(nodes, edges, times)

    def lineage(self, tenant: str, reference: str) -> tuple[list[LineageNode], list[LineageEdge]]:
        """All that led to a resource, and all that it led to.

        Raises:
            NotFound: nothing is known of it in this tenant.
        """
        node = self._lineage.find(tenant, reference)
        if node is None:
            raise NotFound(f"nothing is known of {reference}")
        return self._lineage.around(node.name)

    def model(self, tenant: str, id: str) -> Model:
        """
        Raises:
            NotFound
        """
        model = self._catalogue.model(tenant, id)
        if model is None:
            raise NotFound(f"there is no model {id!r}", reason="MODEL_NOT_FOUND")
        return model

    def models(self, tenant: str, page_size: int, page_token: str) -> tuple[list[Model], str]:
        """Models by id, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        found = self._catalogue.models(tenant, paging.decode_token(page_token), count + 1)
        page = found[:count]
        return page, paging.encode_token(page[-1].id) if len(found) > count else ""

    def delete_model(self, tenant: str, id: str) -> None:
        """
        Raises:
            NotFound
        """
        if not self._catalogue.delete_model(tenant, id):
            raise NotFound(f"there is no model {id!r}", reason="MODEL_NOT_FOUND")
        self._ring()
        self._ring_controller()

    def set_alias(self, tenant: str, id: str, alias: str, version: int) -> Model:
        """
        Raises:
            NotFound: there is no such model or version.
            InvalidArgument: ``champion`` follows the rollouts.
        """
        self.model(tenant, id)
        if alias == CHAMPION:
            raise InvalidArgument(
                "'champion' is set by a settled rollout; choose another alias", field="alias"
            )
        if version:
            self.version(tenant, id, version)
        self._catalogue.set_alias(tenant, id, alias, version)
        self._ring_controller()
        return self.model(tenant, id)

    def set_tags(
        self,
        tenant: str,
        model: str,
        number: int | None,
        tags: Mapping[str, str],
        removed: Collection[str],
    ) -> Mapping[str, str]:
        """Change the tags of a model (``number`` None) or of a version; all that there are now.

        Raises:
            NotFound
            InvalidArgument: there would be too many, or one has no key.
        """
        if number is None:
            self.model(tenant, model)
        else:
            self.version(tenant, model, number)
        return self._catalogue.set_tags(tenant, model, number, tags, removed)

    def version(self, tenant: str, model: str, number: int) -> Version:
        """
        Raises:
            NotFound
        """
        version = self._catalogue.version(tenant, model, number)
        if version is None:
            raise NotFound(f"there is no version {number} of model {model!r}")
        return version

    def versions(
        self, tenant: str, model: str, page_size: int, page_token: str
    ) -> tuple[list[Version], str]:
        """Versions, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        before = self._last_shown(tenant, paging.decode_token(page_token))
        found = self._catalogue.versions(tenant, model, before, count + 1)
        page = found[:count]
        if len(found) <= count:
            return page, ""
        last = page[-1]
        reference = f"{last.model}@{last.number}"
        if tenant == EVERY:
            reference = f"{last.tenant}/{reference}"
        return page, paging.encode_token(reference)

    def _last_shown(self, tenant: str, reference: str) -> Version | None:
        """The version that ended the page before: ``demo@7``, or ``acme/demo@7`` in a list of
        every tenant's."""
        if not reference:
            return None
        of_tenant, _, of_model = reference.rpartition("/")
        model, _, number = of_model.rpartition("@")
        if number.isdecimal():
            found = self._catalogue.version(of_tenant or tenant, model, int(number))
            if found is not None and tenant in (found.tenant, EVERY):
                return found
        raise InvalidArgument("page_token is not one of this list's", field="page_token")

    def resolve(self, tenant: str, reference: str) -> Version:
        """The version that ``demo``, ``demo@7``, ``demo@champion`` or ``demo:ckpt-step-400`` means.

        Raises:
            NotFound: saying what there is.
        """
        id, _, pinned = reference.partition("@")
        model = self._catalogue.model(tenant, id)
        if model is None and (found := _OF_STEP.fullmatch(reference)):
            return self._of_step(tenant, found["model"], int(found["step"]))
        if model is None:
            known = ", ".join(m.id for m in self._catalogue.models(tenant, "", 20)) or "none yet"
            raise NotFound(f"there is no model {id!r}; models: {known}", reason="MODEL_NOT_FOUND")
        number = model.serving_version
        if pinned:
            number = int(pinned) if pinned.isdecimal() else model.aliases.get(pinned, 0)
        if number == 0:
            what = f"version or alias {pinned!r}" if pinned else "version in service"
            raise NotFound(f"model {id!r} has no {what}")
        return self.version(tenant, id, number)

    def _of_step(self, tenant: str, id: str, step: int) -> Version:
        model = self.model(tenant, id)
        number = self._catalogue.version_of_step(tenant, model.id, step)
        if number == 0:
            raise NotFound(f"model {id!r} has no version of a checkpoint of step {step}")
        return self.version(tenant, id, number)

    def hold(self, tenant: str, model: str, number: int) -> datetime:
        """Have a version loaded for a while, though it does not serve; until when.

        Raises:
            NotFound
            FailedPrecondition: it was reversed or quarantined.
            ResourceExhausted: as many of the model as may be are in use, or there is no memory.
        """
        version = self.version(tenant, model, number)
        if not version.may_be_held:
            raise FailedPrecondition(
                f"version {number} of model {model!r} is not to be used: {version.state_reason}",
                reason="VERSION_STATE",
            )
        self.model(tenant, model)
        if no_room := self._no_room(version):
            raise ResourceExhausted(
                f"version {number} of model {model!r} cannot be loaded now: {no_room} "
                "(MILLRACE_REGISTRY_MEMORY_BUDGET_BYTES); try again when there is more",
                reason="MEMORY_BUDGET",
            )
        expire_time = self._catalogue.hold(version, self._hold_rule)
        if expire_time is None:
            raise ResourceExhausted(
                f"{self._hold_rule.maximum} checkpoints of model {model!r} that do not serve are "
                "in use now, and no more may be; try again when one is not",
                reason="TOO_MANY_HELD",
            )
        self._ring_controller()
        return expire_time

    def _no_room(self, version: Version) -> str:
        """Why no endpoint has memory for a version; empty: one has, or none has said anything."""
        memories = self._catalogue.memories()
        deployment = self._catalogue.ensure_deployment(version.tenant, version.model)
        if not memories or deployment is None:
            return ""
        in_use_since = self._now() + self._hold_rule.duration - self._hold_rule.busy
        claim = held_claim(version, deployment.serving)
        found = [room_for_held(each, claim, in_use_since.timestamp()) for each in memories]
        return "" if "" in found else found[0]

    def quarantine(self, tenant: str, model: str, number: int, reason: str) -> Version:
        """Take a version out of service for good.

        Raises:
            NotFound
        """
        version = self._catalogue.quarantine(tenant, model, number, reason)
        if version is None:
            raise NotFound(f"there is no version {number} of model {model!r}")
        self._ring()
        self._ring_controller()
        return version

    def create_deployment(self, deployment: Deployment, request: RequestKey) -> Deployment:
        """
        Raises:
            AlreadyExists: the model has one, or the request id was used otherwise.
            InvalidArgument: a canary's steps do not rise.
        """
        require_rising_steps(deployment.strategy)
        now = self._now()
        made = replace(deployment, id=names.new_id("deployment"), create_time=now, update_time=now)
        return self._catalogue.add_deployment(made, request)

    def deployment(self, tenant: str, id: str) -> Deployment:
        """
        Raises:
            NotFound
        """
        found = self._catalogue.deployment(tenant, id)
        if found is None:
            raise NotFound(f"there is no deployment {id}")
        return found

    def deployments(
        self, tenant: str, page_size: int, page_token: str
    ) -> tuple[list[Deployment], str]:
        """Deployments, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        found = self._catalogue.deployments(tenant, before, count + 1)
        page = found[:count]
        return page, paging.encode_token(page[-1].id) if len(found) > count else ""

    def update_deployment(self, wanted: Deployment, expected_revision: int | None) -> Deployment:
        """Replace what a user may set; rollouts from now on follow it.

        Raises:
            NotFound
            InvalidArgument: a deployment stays with its model; a canary's steps do not rise.
            Aborted: it was changed meanwhile.
        """
        require_rising_steps(wanted.strategy)
        found = self.deployment(wanted.tenant, wanted.id)
        if wanted.model != found.model:
            raise InvalidArgument(
                f"the deployment is of model {found.model!r}; create another one for "
                f"{wanted.model!r}",
                field="deployment.model",
            )
        changed = replace(wanted, create_time=found.create_time, update_time=self._now())
        return self._catalogue.update_deployment(changed, expected_revision)

    def match_deployments(self, tenant: str, model: str, final: bool) -> list[Deployment]:
        """Who wants a checkpoint of ``model``. A model without a deployment gets the default."""
        deployment = self._catalogue.ensure_deployment(tenant, model)
        return [deployment] if deployment is not None and deployment.wants(final) else []
