"""Transactions of prompts: rows of prompts and of their versions."""

from typing import Any

from sqlalchemy import Row, delete, select, update

from millrace_data.domain import RequestKey
from millrace_data.prompts import Prompt, PromptVersion
from millrace_data.schema import PROMPT_VERSIONS, PROMPTS
from millrace_data.store import request_values, twice_if_raced
from millrace_runtime import idempotency
from millrace_runtime.database import Database


class PromptStore:
    """Rows of prompts. Versions are numbered under a lock on their prompt's row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, prompt: Prompt, version: PromptVersion, request: RequestKey
    ) -> tuple[Prompt, PromptVersion]:
        """Add a prompt with its first version, or return what the same request made before.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        return twice_if_raced(lambda: self._add(prompt, version, request))

    def _add(
        self, prompt: Prompt, version: PromptVersion, request: RequestKey
    ) -> tuple[Prompt, PromptVersion]:
        with self._database.transaction() as connection:
            made = idempotency.find_made(
                connection, PROMPTS, prompt.tenant, request.id, request.digest
            )
            if made is not None:
                row = connection.execute(select(PROMPTS).where(PROMPTS.c.id == made)).one()
                first = PROMPT_VERSIONS.c.id == _version_id(made, version.number)
                return prompt_of(row), version_of(
                    connection.execute(select(PROMPT_VERSIONS).where(first)).one()
                )
            connection.execute(
                PROMPTS.insert().values(
                    id=prompt.id,
                    tenant=prompt.tenant,
                    display_name=prompt.display_name,
                    latest_version=prompt.latest_version,
                    create_time=prompt.create_time,
                    update_time=prompt.update_time,
                    **request_values(request),
                )
            )
            connection.execute(PROMPT_VERSIONS.insert().values(**_version_values(version)))
        return prompt, version

    def add_version(self, version: PromptVersion, request: RequestKey) -> PromptVersion | None:
        """Add ``version`` under the next number, or return what the same request made before.

        None: there is no such prompt.

        Raises:
            AlreadyExists: the request id was used for another request.
        """
        return twice_if_raced(lambda: self._add_version(version, request))

    def _add_version(self, version: PromptVersion, request: RequestKey) -> PromptVersion | None:
        own = (PROMPTS.c.tenant == version.tenant, PROMPTS.c.id == version.prompt_id)
        with self._database.transaction() as connection:
            prompt = connection.execute(select(PROMPTS).where(*own).with_for_update()).first()
            if prompt is None:
                return None
            made = idempotency.find_made(
                connection, PROMPT_VERSIONS, version.tenant, request.id, request.digest
            )
            if made is not None:
                known = select(PROMPT_VERSIONS).where(PROMPT_VERSIONS.c.id == made)
                return version_of(connection.execute(known).one())
            number = prompt.latest_version + 1
            values = {
                **_version_values(version),
                "id": _version_id(version.prompt_id, number),
                "number": number,
            }
            connection.execute(PROMPT_VERSIONS.insert().values(**values, **request_values(request)))
            latest = update(PROMPTS).where(*own)
            connection.execute(
                latest.values(latest_version=number, update_time=version.create_time)
            )
            added = select(PROMPT_VERSIONS).where(PROMPT_VERSIONS.c.id == values["id"])
            return version_of(connection.execute(added).one())

    def get(self, tenant: str, id: str) -> Prompt | None:
        query = select(PROMPTS).where(PROMPTS.c.tenant == tenant, PROMPTS.c.id == id)
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else prompt_of(row)

    def version(self, tenant: str, id: str, number: int) -> PromptVersion | None:
        query = select(PROMPT_VERSIONS).where(
            PROMPT_VERSIONS.c.tenant == tenant, PROMPT_VERSIONS.c.id == _version_id(id, number)
        )
        with self._database.transaction() as connection:
            row = connection.execute(query).first()
        return None if row is None else version_of(row)

    def page(self, tenant: str, before_id: str, count: int) -> list[Prompt]:
        """The newest ``count`` prompts older than ``before_id`` (empty: than anything)."""
        query = select(PROMPTS).where(PROMPTS.c.tenant == tenant)
        if before_id:
            query = query.where(PROMPTS.c.id < before_id)
        with self._database.transaction() as connection:
            rows = connection.execute(query.order_by(PROMPTS.c.id.desc()).limit(count))
            return [prompt_of(row) for row in rows]

    def versions_page(
        self, tenant: str, id: str, before: int | None, count: int
    ) -> list[PromptVersion]:
        """The newest ``count`` versions below the number ``before``."""
        query = select(PROMPT_VERSIONS).where(
            PROMPT_VERSIONS.c.tenant == tenant, PROMPT_VERSIONS.c.prompt_id == id
        )
        if before is not None:
            query = query.where(PROMPT_VERSIONS.c.number < before)
        with self._database.transaction() as connection:
            rows = connection.execute(query.order_by(PROMPT_VERSIONS.c.number.desc()).limit(count))
            return [version_of(row) for row in rows]

    def delete(self, tenant: str, id: str) -> bool:
        """Drop a prompt and its versions; whether it was there."""
        own = delete(PROMPTS).where(PROMPTS.c.tenant == tenant, PROMPTS.c.id == id)
        versions = delete(PROMPT_VERSIONS).where(
            PROMPT_VERSIONS.c.tenant == tenant, PROMPT_VERSIONS.c.prompt_id == id
        )
        with self._database.transaction() as connection:
            was_there = connection.execute(own).rowcount > 0
            connection.execute(versions)
        return was_there


def prompt_of(row: Row[Any]) -> Prompt:
    return Prompt(
        tenant=row.tenant,
        id=row.id,
        display_name=row.display_name,
        latest_version=row.latest_version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def version_of(row: Row[Any]) -> PromptVersion:
    return PromptVersion(
        tenant=row.tenant,
        prompt_id=row.prompt_id,
        number=row.number,
        template=row.template,
        digest=row.digest,
        create_time=row.create_time,
    )


def _version_values(version: PromptVersion) -> dict[str, Any]:
    return {
        "id": _version_id(version.prompt_id, version.number),
        "tenant": version.tenant,
        "prompt_id": version.prompt_id,
        "number": version.number,
        "template": version.template,
        "digest": version.digest,
        "create_time": version.create_time,
    }


def _version_id(prompt_id: str, number: int) -> str:
    return f"{prompt_id}@{number}"
