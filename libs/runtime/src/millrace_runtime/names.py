"""Resource names (AIP-122): ``tenants/{tenant}/runs/{run}`` and its parts."""

import re
import secrets
import threading
import time

from millrace_runtime.errors import InvalidArgument

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_lock = threading.Lock()
_newest = 0  # of the ids that this process has made


def parse(template: str, name: str) -> dict[str, str]:
    """The variables of ``template`` as they stand in ``name``.

    >>> parse("tenants/{tenant}/runs/{run}", "tenants/acme/runs/run-1")
    {'tenant': 'acme', 'run': 'run-1'}

    Raises:
        InvalidArgument: ``name`` is not of that form.
    """
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template)
    match = re.fullmatch(pattern, name)
    if match is None:
        raise InvalidArgument(f"{name!r} is not of the form {template!r}", field="name")
    return match.groupdict()


def tenant_of(name: str) -> str:
    """The tenant that a resource belongs to.

    Raises:
        InvalidArgument: the name does not begin with ``tenants/{tenant}``.
    """
    parts = name.split("/")
    if len(parts) < 2 or parts[0] != "tenants" or not parts[1]:
        raise InvalidArgument(f"{name!r} does not begin with tenants/", field="name")
    return parts[1]


def last_id(name: str) -> str:
    """The last segment: a resource's own id."""
    return name.rsplit("/", 1)[-1]


def new_id(prefix: str) -> str:
    """A new id that sorts by time of making: ``prefix-`` + 26 characters, as a ULID's.

    48 bits of milliseconds and 80 random ones, in Crockford's base 32 (the ULID
    specification), so that listing by id is listing by time. Of those that a process makes in
    one millisecond each is larger than the one before.
    """
    global _newest
    value = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    with _lock:
        if value >> 80 == _newest >> 80:
            value = _newest + 1 + secrets.randbits(48)
        _newest = value
    digits = [_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{prefix}-{''.join(digits)}"


def id_time_seconds(identifier: str) -> float:
    """When an id was made by ``new_id``, in seconds since the epoch.

    Raises:
        ValueError: it was not made by ``new_id``.
    """
    digits = identifier.rsplit("-", 1)[-1]
    if len(digits) != 26 or any(digit not in _CROCKFORD for digit in digits):
        raise ValueError(f"{identifier!r} holds no time")
    value = 0
    for digit in digits:
        value = value << 5 | _CROCKFORD.index(digit)
    return (value >> 80) / 1000
