"""The store of a service that commits content: what it publishes is signed."""

from millrace_runtime import signing
from millrace_runtime.content import ContentStore
from millrace_runtime.settings import ProducerSettings


def content_store_of(settings: ProducerSettings) -> ContentStore:
    """
    Raises:
        KeyFileInvalid: the signing key is none.
        OSError: it cannot be read.
    """
    path = settings.signing_key
    sign = None if path is None else signing.Signer.of(path).sign
    return ContentStore(settings.data_root, settings.scratch_directory / "cache", sign)
