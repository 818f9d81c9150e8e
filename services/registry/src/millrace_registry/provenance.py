"""Where an artifact comes from: its signature, its checkpoint's and its dataset's.

An artifact is served when a trusted key signed exactly its manifest, and the chain of what it was
made of holds: its signature names the checkpoint, the checkpoint's names the dataset, and both are
of a trusted key. The artifact's bytes are verified as well; of its ancestors only the manifests,
for the artifact's maker verified their bytes. An ancestor that is not there any more is passed
over.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from millrace_registry.domain import Version
from millrace_registry.settings import ACCEPT_UNSIGNED, RegistrySettings
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.manifest import ManifestError, sha256_bytes
from millrace_runtime.signing import INVALID, MISSING, SignatureRefused, Statement, Trust, verify

LOG = logging.getLogger(__name__)

DAMAGED = (ManifestError, ContentOutsideRoot, FileNotFoundError, SignatureRefused)


class Provenance:
    """``trust``: whose signatures count; None: nobody's is asked for. ``accept_unsigned``: what
    has no signature is taken, while one that is there must be right."""

    def __init__(
        self, content: ContentStore, trust: Trust | None = None, accept_unsigned: bool = False
    ) -> None:
        self._content = content
        self._trust = trust
        self._accept_unsigned = accept_unsigned

    def artifact(self, version: Version) -> Path:
        """The artifact of a version: every byte is as it was committed, and by whom it had to be.

        Raises:
            ManifestError, ContentOutsideRoot, FileNotFoundError: it is damaged, or not there.
            SignatureRefused: it, or what it was made of, is not signed as it must be.
            OSError: the disk fails, which says nothing of the version.
        """
        path = self._content.directory(version.artifact.uri, version.artifact.digest)
        if self._trust is not None:
            self._require_chain(version, self._trust)
        return path

    def _require_chain(self, version: Version, trust: Trust) -> None:
        artifact = {"uri": version.artifact.uri, "digest": version.artifact.digest}
        checkpoint = _content_of(version, "content")
        dataset = _content_of(version, "evaluation")
        made = self._statement("artifact", artifact, trust)
        _require_parent("artifact", made, "checkpoint", checkpoint)
        if not self._is_there("checkpoint", checkpoint):
            return
        made = self._statement("checkpoint", checkpoint, trust)
        if dataset["digest"] == checkpoint["digest"]:  # a tuned one carries its own tokens
            return
        _require_parent("checkpoint", made, "dataset", dataset)
        if self._is_there("dataset", dataset):
            self._statement("dataset", dataset, trust)

    def _statement(self, what: str, content: Mapping[str, str], trust: Trust) -> Statement | None:
        """What was signed of a directory; None: nothing, which is accepted."""
        try:
            signature = self._content.signature(content["uri"])
        except FileNotFoundError:
            if self._accept_unsigned:
                return None
            raise SignatureRefused(MISSING, f"its {what} has no signature") from None
        try:
            return verify(signature, content["digest"], trust)
        except SignatureRefused as error:
            raise SignatureRefused(error.reason, f"the signature of its {what}: {error}") from error

    def _is_there(self, what: str, content: Mapping[str, str]) -> bool:
        """Whether an ancestor is in the store.

        Raises:
            SignatureRefused: its manifest is not the one that was signed.
        """
        try:
            found = sha256_bytes(self._content.manifest_of(content["uri"]))
        except (FileNotFoundError, ContentOutsideRoot):
            return False
        if found != content["digest"]:
            raise SignatureRefused(
                INVALID, f"the manifest of its {what} is {found}, not {content['digest']}"
            )
        return True


def provenance_of(settings: RegistrySettings, content: ContentStore) -> Provenance:
    """
    Raises:
        KeyFileInvalid: what is to be trusted is no key.
        OSError: a key cannot be read.
    """
    if settings.trusted_keys is None:
        LOG.warning("no signatures are asked for: MILLRACE_REGISTRY_TRUSTED_KEYS is unset")
        return Provenance(content)
    trust = Trust.of(settings.trusted_keys)
    return Provenance(content, trust, settings.signatures == ACCEPT_UNSIGNED)


def damage_of(error: Exception) -> str:
    """Why a version is quarantined, for people and for its fact."""
    if isinstance(error, SignatureRefused):
        return f"{error.reason}: {error}"
    return f"its artifact is damaged: {error}"


def _content_of(version: Version, name: str) -> Mapping[str, str]:
    found: Mapping[str, Any] = version.checkpoint.get(name) or {}
    return {"uri": str(found.get("uri", "")), "digest": str(found.get("digest", ""))}


def _require_parent(what: str, made: Statement | None, of: str, parent: Mapping[str, str]) -> None:
    if made is not None and parent["digest"] not in made.parents:
        raise SignatureRefused(
            INVALID, f"the signature of its {what} does not name its {of}, {parent['digest']}"
        )
