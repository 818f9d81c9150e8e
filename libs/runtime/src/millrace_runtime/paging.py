"""Page tokens (AIP-158): opaque to clients, the last id of the page before to us."""

import base64
import binascii

from millrace_runtime.errors import InvalidArgument

DEFAULT_PAGE_SIZE = 100


def page_size(requested: int) -> int:
    """The size to use for what a client asked for; 0 means the default."""
    return requested or DEFAULT_PAGE_SIZE


def encode_token(last_id: str) -> str:
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def decode_token(token: str) -> str:
    """The id that a token stands for; empty for no token.

    Raises:
        InvalidArgument: it is none of ours.
    """
    try:
        padded = token + "=" * (-len(token) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidArgument(
            "page_token is not one that this service gave out; leave it out to start again",
            field="page_token",
        ) from None
