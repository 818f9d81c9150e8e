"""Permissions: tuned checkpoints that other projects (tenants) may ask, and nothing else of them.

Rows are the truth. Every gateway looks at them once a second and holds them in its route table,
so that no request waits for the database. A change is in force here before it is acknowledged,
and everywhere within ``LOOK_SECONDS``.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Row, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from millrace_gateway.domain import Principal
from millrace_gateway.store import CHECKPOINT_PERMISSIONS
from millrace_runtime import names
from millrace_runtime.database import Database
from millrace_runtime.errors import NotFound, PermissionDenied

LOG = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Shared:
    """What is shared: a checkpoint, by the model's id that asks it.

    Attributes:
        tenant: whose it is.
        reference: ``ft:…``, or ``ft:…:ckpt-step-N``.
    """

    tenant: str
    reference: str


@dataclass(frozen=True)
class Permission:
    """``project`` may ask what is shared."""

    id: str
    shared: Shared
    project: str
    create_time: datetime


@dataclass(frozen=True)
class Page:
    """Which permissions are listed: at most ``size``, of one project or of all (empty)."""

    size: int
    after_id: str = ""
    is_ascending: bool = False
    project: str = ""


class Rows(Protocol):
    """Where permissions are kept; ``PermissionTable`` is one."""

    def add(self, shared: Shared, projects: Sequence[str]) -> Sequence[Permission]: ...

    def page(self, shared: Shared, page: Page) -> Sequence[Permission]: ...

    def remove(self, shared: Shared, permission_id: str) -> bool: ...

    def remove_model(self, tenant: str, model: str) -> bool: ...

    def all(self) -> Mapping[tuple[str, str], str]: ...


class PermissionTable:
    """Permissions in the database."""

    def __init__(
        self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self._now = now

    def add(self, shared: Shared, projects: Sequence[str]) -> Sequence[Permission]:
        """A permission for each project, in their order; one that is there stays as it is."""
        rows = [
            {
                "id": names.new_id("cp"),
                "tenant": shared.tenant,
                "reference": shared.reference,
                "project": project,
                "create_time": self._now(),
            }
            for project in projects
        ]
        key = ["tenant", "reference", "project"]
        with self._database.transaction() as connection:
            upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            insert = upsert(CHECKPOINT_PERMISSIONS).on_conflict_do_nothing(index_elements=key)
            connection.execute(insert, rows)
            found = connection.execute(select(CHECKPOINT_PERMISSIONS).where(*_of(shared)))
            by_project = {row.project: _permission(row) for row in found}
        return [by_project[project] for project in projects]

    def page(self, shared: Shared, page: Page) -> Sequence[Permission]:
        table = CHECKPOINT_PERMISSIONS
        query = select(table).where(*_of(shared)).limit(page.size)
        query = query.order_by(table.c.id if page.is_ascending else table.c.id.desc())
        if page.project:
            query = query.where(table.c.project == page.project)
        if page.after_id:
            ahead = table.c.id > page.after_id if page.is_ascending else table.c.id < page.after_id
            query = query.where(ahead)
        with self._database.transaction() as connection:
            return [_permission(row) for row in connection.execute(query)]

    def remove(self, shared: Shared, permission_id: str) -> bool:
        """False: there is no such permission of this checkpoint."""
        ours = (*_of(shared), CHECKPOINT_PERMISSIONS.c.id == permission_id)
        with self._database.transaction() as connection:
            return connection.execute(delete(CHECKPOINT_PERMISSIONS).where(*ours)).rowcount == 1

    def remove_model(self, tenant: str, model: str) -> bool:
        """Remove those of a model and of all its checkpoints; whether there were any."""
        reference = CHECKPOINT_PERMISSIONS.c.reference
        steps = reference.startswith(f"{model}:ckpt-step-", autoescape=True)
        ours = (CHECKPOINT_PERMISSIONS.c.tenant == tenant, or_(reference == model, steps))
        with self._database.transaction() as connection:
            return connection.execute(delete(CHECKPOINT_PERMISSIONS).where(*ours)).rowcount > 0

    def all(self) -> Mapping[tuple[str, str], str]:
        """(project, reference) -> whose model it is."""
        table = CHECKPOINT_PERMISSIONS
        query = select(table.c.project, table.c.reference, table.c.tenant)
        with self._database.transaction() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}


class Permissions:
    """Gives, lists and takes back permissions. Only operators may, and they may for any tenant."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._hold: Callable[[Mapping[tuple[str, str], str]], None] = lambda _: None
        self._looking = asyncio.Lock()

    async def give(
        self, principal: Principal, shared: Shared, projects: Sequence[str]
    ) -> Sequence[Permission]:
        """
        Raises:
            PermissionDenied: the caller is no operator.
        """
        require_operator(principal)
        made = await asyncio.to_thread(self._rows.add, shared, projects)
        await self.look()
        return made

    async def page(
        self, principal: Principal, shared: Shared, page: Page
    ) -> tuple[Sequence[Permission], bool]:
        """A page, and whether there is more.

        Raises:
            PermissionDenied: the caller is no operator.
        """
        require_operator(principal)
        one_more = Page(page.size + 1, page.after_id, page.is_ascending, page.project)
        found = await asyncio.to_thread(self._rows.page, shared, one_more)
        return found[: page.size], len(found) > page.size

    async def take_back(self, principal: Principal, shared: Shared, permission_id: str) -> None:
        """What the project has under way ends as it would have.

        Raises:
            PermissionDenied: the caller is no operator.
            NotFound: this checkpoint has no such permission.
        """
        require_operator(principal)
        if not await asyncio.to_thread(self._rows.remove, shared, permission_id):
            raise NotFound(
                f"checkpoint {shared.reference!r} has no permission {permission_id!r}", field=""
            )
        await self.look()

    async def forget(self, tenant: str, model: str) -> None:
        """A model was deleted: nobody may use it or its checkpoints any more."""
        if await asyncio.to_thread(self._rows.remove_model, tenant, model):
            await self.look()

    async def look(self) -> None:
        """Hold what the rows say now.

        One look at a time: what an older one read must not replace what a newer one did.
        """
        async with self._looking:
            self._hold(await asyncio.to_thread(self._rows.all))

    async def begin(self, hold: Callable[[Mapping[tuple[str, str], str]], None]) -> None:
        """Look for the first time.

        Args:
            hold: is told all that is shared after each look: ``RouteTable.share``.
        """
        self._hold = hold
        await self._try_look()

    async def run(self) -> None:
        """Look once a second, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._try_look()

    async def _try_look(self) -> None:
        """While the database is away all stays as it was."""
        try:
            await self.look()
        except SQLAlchemyError as error:
            LOG.warning("permissions cannot be looked up now: %s", error)


def require_operator(principal: Principal) -> None:
    """
    Raises:
        PermissionDenied
    """
    if not principal.is_operator:
        raise PermissionDenied(
            "only an operator's key may share checkpoints with other projects; ask an operator",
            reason="OPERATOR_KEY_REQUIRED",
        )


def _of(shared: Shared) -> tuple[Any, ...]:
    table = CHECKPOINT_PERMISSIONS
    return table.c.tenant == shared.tenant, table.c.reference == shared.reference


def _permission(row: Row[Any]) -> Permission:
    return Permission(row.id, Shared(row.tenant, row.reference), row.project, row.create_time)
