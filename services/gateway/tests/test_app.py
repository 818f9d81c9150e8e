"""Use cases of keys, on a fake store."""

import asyncio
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from millrace_gateway.app import REMEMBERED_SECONDS, KeyRing, Keys, bearer
from millrace_gateway.domain import (
    Key,
    KeyLimits,
    Principal,
    Priority,
    Role,
    secret_digest,
)
from millrace_runtime.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from millrace_testkit.clock import FakeClock

OPERATOR = Principal("default", "key-0", Role.OPERATOR)
MEMBER = Principal("default", "key-1", Role.MEMBER)


class FakeStore:
    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.lookups = 0

    def add(self, key: Key, digest: str) -> None:
        self.keys[digest] = key

    def revoke(self, tenant: str, key_id: str, now: datetime) -> Key | None:
        for digest, key in self.keys.items():
            if (key.tenant, key.id) == (tenant, key_id):
                self.keys[digest] = replace(key, revoke_time=key.revoke_time or now)
                return self.keys[digest]
        return None

    def change_limits(
        self, tenant: str, key_id: str, changes: Mapping[str, int | Priority | None]
    ) -> Key | None:
        for digest, key in self.keys.items():
            if (key.tenant, key.id) == (tenant, key_id):
                if key.revoke_time is None:
                    limits = replace(key.limits, **changes)  # type: ignore[arg-type]
                    self.keys[digest] = replace(key, limits=limits)
                return self.keys[digest]
        return None

    def page(self, tenant: str, size: int, before_id: str) -> Sequence[Key]:
        ours = sorted(
            (key for key in self.keys.values() if key.tenant == tenant),
            key=lambda key: key.id,
            reverse=True,
        )
        return [key for key in ours if not before_id or key.id < before_id][:size]

    def find_live(self, digest: str) -> Key | None:
        self.lookups += 1
        key = self.keys.get(digest)
        return key if key is not None and key.revoke_time is None else None

    def knows(self, digest: str) -> bool:
        return digest in self.keys

    def has_live_operator(self) -> bool:
        return any(
            key.role is Role.OPERATOR and key.revoke_time is None for key in self.keys.values()
        )


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def rings() -> list[None]:
    return []


@pytest.fixture
def keys(store: FakeStore, rings: list[None], clock: FakeClock) -> Keys:
    return Keys(store, lambda: rings.append(None), clock)


def test_an_operator_makes_a_key_for_any_tenant(
    keys: Keys, store: FakeStore, rings: list[None]
) -> None:
    key, secret = keys.create(OPERATOR, "acme", "ci", Role.MEMBER)
    assert (key.tenant, key.display_name, key.role) == ("acme", "ci", Role.MEMBER)
    assert store.keys == {secret_digest(secret): key}
    assert len(rings) == 1


def test_limits_are_changed_one_by_one(keys: Keys, rings: list[None]) -> None:
    limits = KeyLimits(60, 1000, 2)
    key, _ = keys.create(OPERATOR, "acme", "ci", Role.MEMBER, limits)
    assert key.limits == key.principal.limits == limits
    changes = {"tokens_per_minute": None, "priority": Priority.LOW}
    changed = keys.change_limits(OPERATOR, "acme", key.id, changes)
    assert changed.limits == KeyLimits(60, None, 2, Priority.LOW)
    assert len(rings) == 2
    with pytest.raises(NotFound):
        keys.change_limits(OPERATOR, "default", key.id, changes)
    keys.revoke(OPERATOR, "acme", key.id)
    with pytest.raises(FailedPrecondition):
        keys.change_limits(OPERATOR, "acme", key.id, changes)


def test_changed_limits_are_seen_within_the_remembered_time(keys: Keys, store: FakeStore) -> None:
    key, secret = keys.create(OPERATOR, "acme", "", Role.MEMBER)
    now = [100.0]

    async def scenario() -> None:
        ring = KeyRing(store.find_live, lambda: now[0])
        assert (await ring.authenticate(secret)).limits == KeyLimits()
        keys.change_limits(OPERATOR, "acme", key.id, {"requests_per_minute": 5})
        now[0] += REMEMBERED_SECONDS
        assert (await ring.authenticate(secret)).limits == KeyLimits(5)

    asyncio.run(scenario())


def test_a_member_may_not_manage_keys(keys: Keys) -> None:
    for action in (
        lambda: keys.create(MEMBER, "default", "", Role.MEMBER),
        lambda: keys.list(MEMBER, "default", 0, ""),
        lambda: keys.change_limits(MEMBER, "default", "key-1", {"requests_per_minute": None}),
        lambda: keys.revoke(MEMBER, "default", "key-1"),
    ):
        with pytest.raises(PermissionDenied):
            action()


def test_revoking_what_is_not_there(keys: Keys) -> None:
    key, _ = keys.create(OPERATOR, "acme", "", Role.MEMBER)
    with pytest.raises(NotFound):
        keys.revoke(OPERATOR, "default", key.id)


def test_pages(keys: Keys) -> None:
    made = [keys.create(OPERATOR, "acme", str(n), Role.MEMBER)[0].id for n in range(5)]
    seen, token = [], ""
    while True:
        page, token = keys.list(OPERATOR, "acme", 2, token)
        seen += [key.id for key in page]
        if not token:
            break
    assert seen == sorted(made, reverse=True)


def test_the_first_operator_key_is_written_for_its_owner_alone(
    keys: Keys, store: FakeStore, tmp_path: Path
) -> None:
    path = tmp_path / "secrets" / "operator-key"
    keys.ensure_operator("default", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().strip()
    assert store.keys[secret_digest(secret)].role is Role.OPERATOR
    keys.ensure_operator("default", path)
    assert len(store.keys) == 1
    assert path.read_text().strip() == secret


def test_a_crash_between_file_and_row_locks_nobody_out(
    store: FakeStore, clock: FakeClock, tmp_path: Path
) -> None:
    class Crash(Exception):
        pass

    class CrashingStore(FakeStore):
        def add(self, key: Key, digest: str) -> None:
            raise Crash

    path = tmp_path / "operator-key"
    with pytest.raises(Crash):
        Keys(CrashingStore(), lambda: None, clock).ensure_operator("default", path)
    written = path.read_text().strip()
    Keys(store, lambda: None, clock).ensure_operator("default", path)
    assert path.read_text().strip() == written
    assert secret_digest(written) in store.keys


def test_a_revoked_secret_in_the_file_is_not_given_new_life(
    keys: Keys, store: FakeStore, tmp_path: Path
) -> None:
    path = tmp_path / "operator-key"
    keys.ensure_operator("default", path)
    old = path.read_text().strip()
    (key,) = store.keys.values()
    keys.revoke(OPERATOR, "default", key.id)
    keys.ensure_operator("default", path)
    assert path.read_text().strip() != old
    assert store.find_live(secret_digest(old)) is None


def test_a_revocation_is_seen_within_the_remembered_time(keys: Keys, store: FakeStore) -> None:
    key, secret = keys.create(OPERATOR, "acme", "", Role.MEMBER)
    now = [100.0]

    async def scenario() -> None:
        ring = KeyRing(store.find_live, lambda: now[0])
        for _ in range(20):
            assert (await ring.authenticate(secret)).tenant == "acme"
        assert store.lookups == 1, "the database is asked once in the remembered time"
        keys.revoke(OPERATOR, "acme", key.id)
        now[0] += REMEMBERED_SECONDS
        with pytest.raises(Unauthenticated):
            await ring.authenticate(secret)

    asyncio.run(scenario())


def test_many_at_once_ask_the_database_once(keys: Keys, store: FakeStore) -> None:
    _, secret = keys.create(OPERATOR, "acme", "", Role.MEMBER)

    async def scenario() -> None:
        ring = KeyRing(store.find_live)
        found = await asyncio.gather(*(ring.authenticate(secret) for _ in range(50)))
        assert {principal.tenant for principal in found} == {"acme"}

    asyncio.run(scenario())
    assert store.lookups == 1


@pytest.mark.parametrize("secret", ["", "sk-mr-short", "Bearer", "sk-mr-" + "y" * 43])
def test_unknown_secrets(store: FakeStore, secret: str) -> None:
    async def scenario() -> None:
        with pytest.raises(Unauthenticated):
            await KeyRing(store.find_live).authenticate(secret)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("header", "secret"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("", ""), ("abc", "")],
)
def test_bearer(header: str, secret: str) -> None:
    assert bearer(header) == secret
