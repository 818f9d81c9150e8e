"""Signing secrets, and signatures as Standard Webhooks has them.

A secret is nowhere kept. It is made, whenever it is needed, from a random salt in the database
and a key that all gateways share and the database does not hold: whoever reads the database, or
a backup of it, can sign nothing. Specification: https://github.com/standard-webhooks, "Signature
scheme", symmetric.
"""

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from millrace_gateway.webhooks.domain import Endpoint, Secret

SECRET_PREFIX = "whsec_"
_SALT_BYTES = 32
_KEY_BYTES = 32
_HINT_CHARACTERS = 4


class KeyMismatch(Exception):
    """A secret was made with another key than the gateways have now."""


class SigningKey:
    """What secrets are made with."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        # One-way, and of another purpose than any secret's salt can be.
        self.fingerprint = hmac.new(key, b"fingerprint", hashlib.sha256).hexdigest()[:16]

    def new_secret(self) -> Secret:
        return Secret(secrets.token_hex(_SALT_BYTES), self.fingerprint)

    def text(self, secret: Secret) -> str:
        """The secret as its owner has it: ``whsec_`` and 32 bytes in base64.

        Raises:
            KeyMismatch: it was made with another key.
        """
        return SECRET_PREFIX + base64.b64encode(self._bytes(secret)).decode()

    def hint(self, secret: Secret) -> str | None:
        """Enough to tell secrets apart; None when it was made with another key."""
        if secret.key != self.fingerprint:
            return None
        return f"{SECRET_PREFIX}...{self.text(secret).rstrip('=')[-_HINT_CHARACTERS:]}"

    def headers(
        self, endpoint: Endpoint, message_id: str, body: bytes, now: datetime
    ) -> dict[str, str]:
        """The headers that let ``endpoint`` verify ``body``, with every secret that is good now.

        Raises:
            KeyMismatch: its newest secret was made with another key.
        """
        timestamp = str(int(now.timestamp()))
        signed = f"{message_id}.{timestamp}.".encode() + body
        return {
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(self._signatures(endpoint.live_secrets(now), signed)),
        }

    def _signatures(self, live: Sequence[Secret], signed: bytes) -> Sequence[str]:
        return [
            "v1," + base64.b64encode(_mac(self._bytes(secret), signed)).decode() for secret in live
        ]

    def _bytes(self, secret: Secret) -> bytes:
        if secret.key != self.fingerprint:
            raise KeyMismatch("the gateways' webhook key was changed; rotate the endpoint's secret")
        return _mac(self._key, b"secret:" + secret.salt.encode())


def load_key(given: str | None, path: Path) -> SigningKey:
    """The gateways' key: what they were given, else what ``path`` holds; made when it is missing.

    Gateways that start at the same time at one path have one key.

    Raises:
        OSError: ``path`` can be neither read nor made.
        ValueError: it holds too little.
    """
    if given is not None:
        return SigningKey(given.encode())
    if not path.exists():
        _make(path)
    key = path.read_text().strip()
    if len(key) < _KEY_BYTES:
        raise ValueError(f"{path} holds no key; remove it to have one made")
    return SigningKey(key.encode())


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(_KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # fails where another gateway was quicker, and its key holds
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
