"""Prompt templates as resources: a prompt has numbered versions, and a version never changes.

What a template may say and how it is rendered is ``millrace_examples.prompt_template``'s.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from millrace_data.domain import RequestKey, utc_now
from millrace_examples.prompt_template import (
    canonical_json,
    normal_template,
    template_digest,
    template_mistakes,
)
from millrace_runtime import names, paging
from millrace_runtime.errors import InvalidArgument, NotFound

MAXIMUM_VERSIONS_A_PAGE = 50  # each may have 256 KiB, and a message of gRPC 16 MiB


@dataclass(frozen=True)
class Prompt:
    """``update_time`` is when its newest version, ``latest_version``, was made."""

    tenant: str
    id: str
    display_name: str
    latest_version: int
    create_time: datetime
    update_time: datetime

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/prompts/{self.id}"


@dataclass(frozen=True)
class PromptVersion:
    """``number`` counts from 1; ``template`` is canonical JSON, and ``digest`` its sha256."""

    tenant: str
    prompt_id: str
    number: int
    template: str
    digest: str
    create_time: datetime

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/prompts/{self.prompt_id}/versions/{self.number}"


class Prompts(Protocol):
    """Rows of prompts and of their versions (``prompt_store.PromptStore``)."""

    def add(
        self, prompt: Prompt, version: PromptVersion, request: RequestKey
    ) -> tuple[Prompt, PromptVersion]: ...
    def add_version(self, version: PromptVersion, request: RequestKey) -> PromptVersion | None: ...
    def get(self, tenant: str, id: str) -> Prompt | None: ...
    def version(self, tenant: str, id: str, number: int) -> PromptVersion | None: ...
    def page(self, tenant: str, before_id: str, count: int) -> list[Prompt]: ...
    def versions_page(
        self, tenant: str, id: str, before: int | None, count: int
    ) -> list[PromptVersion]: ...
    def delete(self, tenant: str, id: str) -> bool: ...


class PromptApp:
    """Prompts and their versions."""

    def __init__(self, prompts: Prompts, *, now: Callable[[], datetime] = utc_now) -> None:
        self._prompts = prompts
        self._now = now

    def create(
        self, tenant: str, display_name: str, template_json: str, request: RequestKey
    ) -> tuple[Prompt, PromptVersion]:
        """Make a prompt with its version 1.

        Raises:
            InvalidArgument: INVALID_PROMPT, naming the field.
            AlreadyExists: the request id was used for another prompt.
        """
        now, id = self._now(), names.new_id("pmpt")
        version = self._version(tenant, id, template_json)
        prompt = Prompt(tenant, id, display_name, version.number, now, now)
        return self._prompts.add(prompt, version, request)

    def create_version(
        self, tenant: str, id: str, template_json: str, request: RequestKey
    ) -> PromptVersion:
        """Add a version, the latest from then on.

        Raises:
            NotFound: there is no such prompt.
            InvalidArgument: INVALID_PROMPT, naming the field.
            AlreadyExists: the request id was used for another version.
        """
        version = self._version(tenant, id, template_json)
        made = self._prompts.add_version(version, request)
        if made is None:
            raise _no_prompt(id)
        return made

    def _version(self, tenant: str, id: str, template_json: str) -> PromptVersion:
        """Version 1; the store numbers later ones."""
        document = parse(template_json)
        digest = template_digest(document)
        return PromptVersion(tenant, id, 1, canonical_json(document), digest, self._now())

    def get(self, tenant: str, id: str) -> Prompt:
        """
        Raises:
            NotFound
        """
        prompt = self._prompts.get(tenant, id)
        if prompt is None:
            raise _no_prompt(id)
        return prompt

    def version(self, tenant: str, id: str, number: int) -> PromptVersion:
        """The version of this number; of 0, the newest.

        Raises:
            NotFound: there is no such prompt (PROMPT_NOT_FOUND), or it has no such version.
        """
        prompt = self.get(tenant, id)
        found = self._prompts.version(tenant, id, number or prompt.latest_version)
        if found is None:
            raise NotFound(
                f"prompt {id} has no version {number}; its newest is {prompt.latest_version}",
                reason="PROMPT_VERSION_NOT_FOUND",
                field="number",
            )
        return found

    def page(self, tenant: str, page_size: int, page_token: str) -> tuple[list[Prompt], str]:
        """Prompts, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        found = self._prompts.page(tenant, paging.decode_token(page_token), count + 1)
        token = paging.encode_token(found[count - 1].id) if len(found) > count else ""
        return found[:count], token

    def versions(
        self, tenant: str, id: str, page_size: int, page_token: str
    ) -> tuple[list[PromptVersion], str]:
        """A prompt's versions, newest first, and the token of the next page.

        Raises:
            NotFound: there is no such prompt.
            InvalidArgument: the token is none of ours.
        """
        self.get(tenant, id)
        count = min(page_size or MAXIMUM_VERSIONS_A_PAGE, MAXIMUM_VERSIONS_A_PAGE)
        found = self._prompts.versions_page(tenant, id, _number(page_token), count + 1)
        token = paging.encode_token(str(found[count - 1].number)) if len(found) > count else ""
        return found[:count], token

    def delete(self, tenant: str, id: str) -> None:
        """Delete a prompt with all its versions.

        Raises:
            NotFound
        """
        if not self._prompts.delete(tenant, id):
            raise _no_prompt(id)


def parse(template_json: str) -> dict[str, Any]:
    """A template in its normal form.

    Raises:
        InvalidArgument: INVALID_PROMPT, naming the field as ``template.messages[0].role``.
    """
    try:
        document = json.loads(template_json)
    except (ValueError, RecursionError) as error:
        raise _invalid("", f"is no JSON: {error}") from None
    for place, message in template_mistakes(document):
        raise _invalid(place, message)
    return normal_template(document)


def _invalid(place: str, message: str) -> InvalidArgument:
    field = ".".join(part for part in ("template", place) if part)
    return InvalidArgument(
        f"{place or 'the prompt'}: {message}", reason="INVALID_PROMPT", field=field
    )


def _no_prompt(id: str) -> NotFound:
    return NotFound(f"there is no prompt {id}", reason="PROMPT_NOT_FOUND", field="name")


def _number(page_token: str) -> int | None:
    """
    Raises:
        InvalidArgument
    """
    given = paging.decode_token(page_token)
    if given and not (given.isascii() and given.isdigit() and len(given) < 10):
        raise InvalidArgument("page_token is no version's number", field="page_token")
    return int(given) if given else None
