"""What the data service's tests build: small corpora, and the service's parts."""

import json
import random
from pathlib import Path
from typing import Any

from sqlalchemy import select

from millrace_data.app import DatasetApp, FileApp
from millrace_data.domain import (
    BuiltDataset,
    Content,
    Dataset,
    DatasetSource,
    File,
    FilePurpose,
    PythonStandardLibrary,
    Recipe,
    RequestKey,
    Upload,
    UploadPart,
)
from millrace_data.events import FactRecorder
from millrace_data.file_bytes import FileBytes
from millrace_data.part_bytes import PartBytes
from millrace_data.prompt_store import PromptStore
from millrace_data.prompts import PromptApp
from millrace_data.row_keeping import RowKeeper
from millrace_data.row_search import RowSearch
from millrace_data.row_store import RowStore
from millrace_data.schema import METADATA, OUTBOX
from millrace_data.store import DatasetStore, FileStore
from millrace_data.upload_store import UploadStore
from millrace_data.uploads import UploadApp
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.outbox import Outbox
from millrace_testkit.clock import FakeClock

LEASE_SECONDS = 15.0
MAXIMUM_FILE_BYTES = 1_000_000
MAXIMUM_PART_BYTES = 100_000
DIGEST = "sha256:" + "ab" * 32
BUILT = BuiltDataset(
    content=Content("file:///data/datasets/d", DIGEST, 1000),
    tokenizer_digest=DIGEST,
    train_tokens=900,
    heldout_tokens=90,
    documents={"read": 12, "kept_train": 10, "kept_heldout": 2},
)

_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "ri",
    "so",
    "tu",
    "wy",
    "zo",
)


def sentence(source: random.Random, words: int = 12) -> str:
    """Words of two syllables, a capital and a full stop."""
    text = " ".join("".join(source.choices(_SYLLABLES, k=2)) for _ in range(words))
    return f"{text.capitalize()}."


def prose(seed: int, sentences: int = 20) -> str:
    """A text unlike that of any other seed."""
    source = random.Random(seed)
    return "\n".join(sentence(source) for _ in range(sentences))


def write_text_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def conversation(seed: int) -> dict[str, list[dict[str, str]]]:
    """A valid example of OpenAI's chat format."""
    source = random.Random(seed)
    return {
        "messages": [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": sentence(source)},
            {"role": "assistant", "content": sentence(source, 30)},
        ]
    }


def read_jsonl(path: Path) -> list[Any]:
    """Its rows. Only ``\\n`` ends a line: a text may hold Unicode's other line separators."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def chat_jsonl(examples: int = 10) -> bytes:
    """A file that is fit for fine-tuning."""
    return "".join(json.dumps(conversation(n)) + "\n" for n in range(examples)).encode()


class Parts:
    """The service's parts, wired as ``__main__`` does, with a clock that tests move."""

    def __init__(self, database: Database, folder: Path, clock: FakeClock) -> None:
        METADATA.create_all(database.engine)
        record = FactRecorder(Outbox(OUTBOX, clock))
        self.database = database
        self.clock = clock
        self.root = folder / "data"
        self.content = ContentStore(str(self.root), folder / "cache")
        self.stored = FileBytes(self.content, MAXIMUM_FILE_BYTES)
        self.file_store = FileStore(database, record, clock)
        self.upload_store = UploadStore(database, self.file_store, clock)
        self.prompts = PromptApp(PromptStore(database), now=clock)
        self.part_bytes = PartBytes(self.content, MAXIMUM_PART_BYTES)
        self.dataset_store = self.store_of("one")
        self.rings: list[str] = []
        self.row_store = RowStore(database)
        self.rows = RowKeeper(self.row_store, self.content)
        self.search = RowSearch(self.row_store, self.rows, self.stored)
        self.files = FileApp(
            self.file_store,
            self.stored,
            rows=self.rows,
            ring=lambda: self.rings.append("relay"),
            now=clock,
        )
        self.uploads = UploadApp(
            self.upload_store,
            self.part_bytes,
            self.files,
            MAXIMUM_FILE_BYTES,
            ring=lambda: self.rings.append("relay"),
            now=clock,
        )
        self.datasets = DatasetApp(
            self.dataset_store,
            self.file_store,
            ring=lambda: self.rings.append("relay"),
            ring_builders=[lambda: self.rings.append("builder")],
            now=clock,
        )

    def store_of(self, owner: str) -> DatasetStore:
        """The datasets as another replica of the service sees them."""
        record = FactRecorder(Outbox(OUTBOX, self.clock))
        return DatasetStore(
            self.database, record, owner=owner, lease_seconds=LEASE_SECONDS, now=self.clock
        )

    def upload(
        self,
        content: bytes = b"some text",
        tenant: str = "acme",
        purpose: FilePurpose = FilePurpose.USER_DATA,
        request_id: str = "",
        filename: str = "notes.txt",
    ) -> File:
        return self.files.upload(tenant, filename, purpose, request_id, [content])

    def begin(
        self,
        size_bytes: int,
        purpose: FilePurpose = FilePurpose.USER_DATA,
        request: RequestKey = RequestKey(),
        expire_seconds: int | None = None,
    ) -> Upload:
        """Announce a file of so many bytes."""
        name, kind = "notes.txt", "text/plain"
        return self.uploads.create("acme", name, purpose, kind, size_bytes, expire_seconds, request)

    def add(self, upload: Upload, content: bytes, request_id: str = "") -> UploadPart:
        return self.uploads.add_part("acme", upload.id, request_id, [content])

    def complete(self, upload: Upload, *parts: UploadPart, md5: str = "") -> Upload:
        return self.uploads.complete("acme", upload.id, [part.id for part in parts], md5)

    def create(
        self,
        tenant: str = "acme",
        source: DatasetSource = PythonStandardLibrary(),
        request: RequestKey = RequestKey(),
    ) -> Dataset:
        return self.datasets.create(tenant, "a corpus", source, Recipe(), request)

    def facts(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(subject, traceparent, data) of everything recorded, oldest first."""
        with self.database.transaction() as connection:
            rows = connection.execute(select(OUTBOX).order_by(OUTBOX.c.sequence)).all()
        return [(row.subject, row.traceparent, json.loads(row.document)["data"]) for row in rows]

    def stored_files(self) -> list[str]:
        """Names of what lies in the store's folder of files."""
        return sorted(path.name for path in (self.root / "files").iterdir())

    def stored_parts(self) -> list[str]:
        """``<upload>/<part>`` of what lies in the store's folder of uploads."""
        folder = self.root / "uploads"
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
