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
            raise Unavailable(
                "the gateway cannot read the model's artifact; tell the operator that it needs "
                f"the mesh's data root ({type(error).__name__})",
                reason="ARTIFACT_UNREADABLE",
                field="model",
            ) from error


def _load(content: ContentStore, uri: str, digest: str) -> ModelTokenizer:
    # A directory's digest is its manifest's own sha256.
    document = content.file(f"{uri}/{manifest.MANIFEST_NAME}", digest).read_bytes()
    digests = {entry["path"]: entry["sha256"] for entry in json.loads(document)["files"]}
    if _VOCABULARY not in digests:
        raise FailedPrecondition(
            f"the model's artifact has no {_VOCABULARY}", reason="NO_TOKENIZER", field="model"
        )

    def read(name: str) -> str:
        return content.file(f"{uri}/{name}", digests[name]).read_text(encoding="utf-8")

    configuration = json.loads(read(_CONFIGURATION)) if _CONFIGURATION in digests else {}
    return ModelTokenizer(Tokenizer.from_str(read(_VOCABULARY)), configuration)
