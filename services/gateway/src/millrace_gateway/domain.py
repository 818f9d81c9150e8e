"""Keys: who may call, as which tenant, and how much."""

import enum
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

SECRET_PREFIX = "sk-mr-"
_SECRET_BYTES = 32


class Role(enum.Enum):
    """What a key may do."""

    MEMBER = "member"  # everything within its tenant
    OPERATOR = "operator"  # also make and revoke keys of any tenant


class Priority(enum.Enum):
    """Who goes first when engines are busy."""

    HIGH = "high"
    DEFAULT = "default"
    LOW = "low"


@dataclass(frozen=True)
class KeyLimits:
    """How much a key may use, at all gateways together; None: the operator's default.

    Attributes:
        requests_per_minute: generations begun; as many may come at once.
        tokens_per_minute: of prompts and answers together.
        concurrent_generations: in progress at once.
        priority: of generations that ask for no other by ``service_tier``.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_generations: int | None = None
    priority: Priority = Priority.DEFAULT


@dataclass(frozen=True)
class Principal:
    """Who is calling."""

    tenant: str
    key_id: str
    role: Role
    limits: KeyLimits = KeyLimits()

    @property
    def is_operator(self) -> bool:
        return self.role is Role.OPERATOR


@dataclass(frozen=True)
class Key:
    """An API key, without its secret. ``revoke_time`` is None while it is good."""

    id: str
    tenant: str
    display_name: str
    role: Role
    create_time: datetime
    revoke_time: datetime | None = None
    limits: KeyLimits = KeyLimits()

    @property
    def principal(self) -> Principal:
        return Principal(self.tenant, self.id, self.role, self.limits)


def new_secret() -> str:
    """A new secret: 256 random bits, recognisable by its prefix."""
    return SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def is_secret(text: str) -> bool:
    """Whether ``text`` has the form of a secret (it need not be a known one)."""
    return text.startswith(SECRET_PREFIX) and len(text) == len(SECRET_PREFIX) + 43


def secret_digest(secret: str) -> str:
    """What is kept of a secret. One round suffices: 256 random bits cannot be guessed."""
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()
