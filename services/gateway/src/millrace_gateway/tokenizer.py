"""The tokenizers of the models that are served, each from its version's own artifact.

A version's tokenizer is part of its artifact, so it is known by the artifact's digest: nothing
of one version is ever used for another. The artifact's manifest is verified against that digest,
and the files against the manifest; the weights are not read.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_gateway import upstream
from millrace_gateway.route import Route, Target
from millrace_runtime import manifest
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.errors import FailedPrecondition, Unavailable

_VOCABULARY = "tokenizer.json"
_CONFIGURATION = "tokenizer_config.json"
_CARD = "README.md"
_REMEMBERED = 16

Resolve = Callable[[registry_pb2.ResolveVersionRequest], Awaitable[Any]]


@dataclass(frozen=True)
class ModelTokenizer:
    """What a text becomes before a version reads it.

    Attributes:
        configuration: ``tokenizer_config.json`` as it is in the artifact.
    """

    tokenizer: Any
    configuration: Mapping[str, Any]

    async def encode(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[str]]:
        """Ids and names of a text's tokens; special tokens that it spells out count as such."""
        encoding = await asyncio.to_thread(
            self.tokenizer.encode, text, add_special_tokens=add_special_tokens
        )
        return encoding.ids, encoding.tokens

    async def decode(self, ids: list[int]) -> str:
        """The text of tokens, special ones written out."""
        text: str = await asyncio.to_thread(self.tokenizer.decode, ids, skip_special_tokens=False)
        return text

    @property
    def vocabulary_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())


class Tokenizers:
    """Reads tokenizers when they are first asked for, and keeps those asked for of late."""

    def __init__(self, content: ContentStore, resolve: Resolve) -> None:
        """``resolve`` is the registry's ``ResolveVersion``: it knows where artifacts lie."""
        self._content = content
        self._resolve = resolve
        self._reading: OrderedDict[str, asyncio.Task[ModelTokenizer]] = OrderedDict()

    async def of(self, found: Route, target: Target) -> ModelTokenizer:
        """The tokenizer of a version that is served.

        Raises:
            FailedPrecondition: its artifact has none.
            Unavailable: it cannot be read now.
        """
        digest = target.artifact_digest
        task = self._reading.get(digest)
        if task is None:
            task = asyncio.ensure_future(self._read(found, target))
            self._reading[digest] = task
            while len(self._reading) > _REMEMBERED:
                self._reading.popitem(last=False)
        self._reading.move_to_end(digest)
        try:
            # Several may wait for it: that one of them leaves is no reason to stop.
            return await asyncio.shield(task)
        except Exception:
            if self._reading.get(digest) is task:
                del self._reading[digest]  # the next one tries again
            raise

    async def _read(self, found: Route, target: Target) -> ModelTokenizer:
        request = registry_pb2.ResolveVersionRequest(
            parent=f"tenants/{found.tenant}", reference=f"{found.model}@{target.version}"
        )
        response = await upstream.call(self._resolve, request)
        uri = response.version.artifact.uri
        try:
            return await asyncio.to_thread(_load, self._content, uri, target.artifact_digest)
        except (manifest.ManifestError, ContentOutsideRoot, OSError) as error:
            raise _unreadable(error) from error

    async def card(self, version: registry_pb2.Version) -> str | None:
        """The model card in a version's artifact; None: it has none.

        Raises:
            Unavailable: it cannot be read now.
        """
        artifact = version.artifact
        try:
            files = await asyncio.to_thread(_Files, self._content, artifact.uri, artifact.digest)
            return await asyncio.to_thread(files.read, _CARD) if _CARD in files.digests else None
        except (manifest.ManifestError, ContentOutsideRoot, OSError) as error:
            raise _unreadable(error) from error


def _unreadable(error: Exception) -> Unavailable:
    return Unavailable(
        "the gateway cannot read the model's artifact; tell the operator that it needs "
        f"the mesh's data root ({type(error).__name__})",
        reason="ARTIFACT_UNREADABLE",
        field="model",
    )


class _Files:
    """The files of an artifact, each verified when it is read."""

    def __init__(self, content: ContentStore, uri: str, digest: str) -> None:
        self._content = content
        self._uri = uri
        # A directory's digest is its manifest's own sha256.
        document = content.file(f"{uri}/{manifest.MANIFEST_NAME}", digest).read_bytes()
        self.digests = {entry["path"]: entry["sha256"] for entry in json.loads(document)["files"]}

    def read(self, name: str) -> str:
        path = self._content.file(f"{self._uri}/{name}", self.digests[name])
        return path.read_text(encoding="utf-8")


def _load(content: ContentStore, uri: str, digest: str) -> ModelTokenizer:
    files = _Files(content, uri, digest)
    if _VOCABULARY not in files.digests:
        raise FailedPrecondition(
            f"the model's artifact has no {_VOCABULARY}", reason="NO_TOKENIZER", field="model"
        )
    is_configured = _CONFIGURATION in files.digests
    configuration = json.loads(files.read(_CONFIGURATION)) if is_configured else {}
    return ModelTokenizer(Tokenizer.from_str(files.read(_VOCABULARY)), configuration)
