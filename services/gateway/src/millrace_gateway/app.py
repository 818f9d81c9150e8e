"""Use cases of the gateway's own resource: keys, and whom a secret belongs to."""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from millrace_gateway.domain import (
    Key,
    KeyLimits,
    Principal,
    Priority,
    Role,
    is_secret,
    new_secret,
    secret_digest,
)
from millrace_runtime import names, paging
from millrace_runtime.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)

REMEMBERED_SECONDS = 1.0
_MOST_REMEMBERED = 10_000


class KeyStore(Protocol):
    """Where keys are kept; ``store.KeyTable`` is one."""

    def add(self, key: Key, secret_digest: str) -> None: ...

    def revoke(self, tenant: str, key_id: str, now: datetime) -> Key | None: ...

    def change_limits(
        self, tenant: str, key_id: str, changes: Mapping[str, int | Priority | None]
    ) -> Key | None: ...

    def page(self, tenant: str, size: int, before_id: str) -> Sequence[Key]: ...

    def get(self, tenant: str, key_id: str) -> Key | None: ...

    def find_live(self, secret_digest: str) -> Key | None: ...

    def knows(self, secret_digest: str) -> bool: ...

    def has_live_operator(self) -> bool: ...


class Keys:
    """Makes, lists, limits and revokes keys. Only operators may, and they may for any tenant."""

    def __init__(
        self,
        store: KeyStore,
        ring: Callable[[], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._ring = ring
        self._now = now

    def create(
        self,
        principal: Principal,
        tenant: str,
        display_name: str,
        role: Role,
        limits: KeyLimits = KeyLimits(),
    ) -> tuple[Key, str]:
        """A new key and its secret, which is shown this once.

        Raises:
            PermissionDenied: the caller is no operator.
        """
        _require_operator(principal)
        return self._add(tenant, display_name, role, new_secret(), limits)

    def list(
        self, principal: Principal, tenant: str, page_size: int, page_token: str
    ) -> tuple[Sequence[Key], str]:
        """A page of a tenant's keys, newest first, and the token of the next one.

        Raises:
            PermissionDenied: the caller is no operator.
            InvalidArgument: the token is none of ours.
        """
        _require_operator(principal)
        size = paging.page_size(page_size)
        keys = self._store.page(tenant, size + 1, paging.decode_token(page_token))
        more = len(keys) > size
        return keys[:size], paging.encode_token(keys[size - 1].id) if more else ""

    def change_limits(
        self,
        principal: Principal,
        tenant: str,
        key_id: str,
        changes: Mapping[str, int | Priority | None],
    ) -> Key:
        """Change the limits named in ``changes`` (fields of ``KeyLimits``), and no others.

        Every gateway holds the key to them within ``REMEMBERED_SECONDS``.

        Raises:
            PermissionDenied: the caller is no operator.
            NotFound: the tenant has no such key.
            FailedPrecondition: the key is revoked.
        """
        _require_operator(principal)
        key = self._store.change_limits(tenant, key_id, changes)
        if key is None:
            raise _no_such_key(tenant, key_id)
        if key.revoke_time is not None:
            raise FailedPrecondition(f"key {key_id!r} is revoked", reason="KEY_REVOKED")
        self._ring()
        return key

    def revoke(self, principal: Principal, tenant: str, key_id: str) -> Key:
        """Make a key worthless, everywhere within ``REMEMBERED_SECONDS``. Twice is as once.

        Raises:
            PermissionDenied: the caller is no operator.
            NotFound: the tenant has no such key.
        """
        _require_operator(principal)
        key = self._store.revoke(tenant, key_id, self._now())
        if key is None:
            raise _no_such_key(tenant, key_id)
        self._ring()
        return key

    def find(self, tenant: str, key_id: str) -> Key | None:
        """A tenant's key, revoked or not: for work that goes on in its name."""
        return self._store.get(tenant, key_id)

    def ensure_operator(self, tenant: str, path: Path) -> None:
        """At first start: make the first operator key and leave its secret at ``path``.

        The file is written before the row: when a crash comes between them, the next start
        finds the secret and gives it its row, and nobody is locked out. Of gateways that start
        together at one ``path`` one makes the key.
        """
        if self._store.has_live_operator():
            return
        with _alone_in(path.parent):
            if not self._store.has_live_operator():
                self._add_operator(tenant, path)

    def _add_operator(self, tenant: str, path: Path) -> None:
        found = path.read_text().strip() if path.exists() else ""
        if is_secret(found) and not self._store.knows(secret_digest(found)):
            secret = found
        else:
            secret = new_secret()
            _write_secret(path, secret)
        self._add(tenant, "first operator key", Role.OPERATOR, secret)

    def _add(
        self,
        tenant: str,
        display_name: str,
        role: Role,
        secret: str,
        limits: KeyLimits = KeyLimits(),
    ) -> tuple[Key, str]:
        key_id = names.new_id("key")
        key = Key(key_id, tenant, display_name, role, self._now(), limits=limits)
        self._store.add(key, secret_digest(secret))
        self._ring()
        return key, secret


@dataclass(frozen=True)
class _Lookup:
    found: asyncio.Future[Key | None]
    expires: float


class KeyRing:
    """Tells who is calling, from memory: the database is asked once a second a key.

    So a revoked key is refused by every replica within ``REMEMBERED_SECONDS``.
    """

    def __init__(
        self,
        find_live: Callable[[str], Key | None],
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_live = find_live
        self._monotonic_seconds = monotonic_seconds
        self._lookups: dict[str, _Lookup] = {}

    async def authenticate(self, secret: str) -> Principal:
        """Who holds ``secret``.

        Raises:
            Unauthenticated: it is empty, unknown or revoked.
        """
        if not secret:
            raise Unauthenticated(
                "no API key was given; send one as 'Authorization: Bearer sk-mr-…'",
                reason="MISSING_API_KEY",
            )
        key = await asyncio.shield(self._lookup(secret)) if is_secret(secret) else None
        if key is None:
            raise Unauthenticated(
                "the API key is not known, or was revoked", reason="INVALID_API_KEY"
            )
        return key.principal

    def _lookup(self, secret: str) -> asyncio.Future[Key | None]:
        digest = secret_digest(secret)
        now = self._monotonic_seconds()
        known = self._lookups.get(digest)
        if known is not None and known.expires > now:
            return known.found
        if len(self._lookups) >= _MOST_REMEMBERED:
            self._lookups.clear()
        found = asyncio.ensure_future(asyncio.to_thread(self._find_live, digest))
        self._lookups[digest] = _Lookup(found, now + REMEMBERED_SECONDS)
        return found


def bearer(authorization: str) -> str:
    """The secret in an ``Authorization`` header (RFC 6750); empty when there is none."""
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _require_operator(principal: Principal) -> None:
    if not principal.is_operator:
        raise PermissionDenied(
            "only an operator's key may manage keys; ask an operator for one",
            reason="OPERATOR_KEY_REQUIRED",
        )


def _no_such_key(tenant: str, key_id: str) -> NotFound:
    return NotFound(f"tenant {tenant!r} has no key {key_id!r}")


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes that ask for it out; a lock ends with its process (flock(2))."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_secret(path: Path, secret: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
