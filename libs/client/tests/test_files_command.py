"""``millrace files`` over a gateway without a network."""

import hashlib
import json
import sys
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet
import pytest
from fake_gateway import FakeGateway, error, page
from typer.testing import CliRunner, Result

from millrace_client import uploads
from millrace_client.api import Millrace
from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.endpoint import Endpoint
from millrace_client.errors import BadRequest, MillraceError, ServerError
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
FILE = {
    "id": "file-1",
    "object": "file",
    "bytes": 1_500_000,
    "created_at": 1_700_000_000,
    "filename": "pairs.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "digest": "sha256:1",
    "example_count": 12,
}
PENDING = {"id": "upload-1", "object": "upload", "bytes": 10, "status": "pending", "file": None}
COMPLETED = {**PENDING, "status": "completed", "file": FILE}
PARTS = "/v1/uploads/upload-1/parts"


def millrace(gateway: FakeGateway, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(Path.cwd()), gateway.transport)
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, ("files", *arguments), obj=connection)


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    monkeypatch.chdir(tmp_path)
    return FakeGateway()


@pytest.fixture
def client(gateway: FakeGateway) -> Millrace:
    return Millrace(Endpoint("http://gateway", "sk"), transport=gateway.transport)


def receiving(gateway: FakeGateway, failing_from: int = 99) -> list[bytes]:
    """Let the gateway take parts, until it fails; what it has taken."""
    taken: list[bytes] = []

    def take(request: httpx.Request) -> httpx.Response:
        if len(taken) >= failing_from:
            return error(503, "away", code="unavailable")
        taken.append(request.content.split(b"\r\n\r\n", 1)[1].split(b"\r\n--", 1)[0])
        return httpx.Response(200, json={"id": f"part-{len(taken)}", "object": "upload.part"})

    gateway.answer("POST /v1/uploads", PENDING)
    gateway.answer(f"GET {PARTS}", page())
    gateway.answer(f"POST {PARTS}", take)
    gateway.answer("POST /v1/uploads/upload-1/complete", COMPLETED)
    return taken


def part(number: int, content: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"id": f"part-{number}", "object": "upload.part", "digest": digest}


def test_a_small_file_goes_at_once(gateway: FakeGateway) -> None:
    Path("pairs.jsonl").write_text("{}\n")
    gateway.answer("POST /v1/files", FILE)
    result = millrace(
        gateway, "upload", "pairs.jsonl", "-p", "fine-tune", "--expires-after", "3600"
    )
    assert result.exit_code == 0, result.output
    assert "file-1" in result.output
    form = gateway.requests[-1].content
    for expected in (b'name="purpose"\r\n\r\nfine-tune', b'filename="pairs.jsonl"', b"{}\n"):
        assert expected in form
    assert b'name="expires_after[seconds]"\r\n\r\n3600' in form
    assert b'name="expires_after[anchor]"\r\n\r\ncreated_at' in form


def rows(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"{number}", "completion": "a" * number} for number in range(count)]


def sent_rows(gateway: FakeGateway) -> list[dict[str, object]]:
    """What the last upload's parquet holds."""
    content = gateway.requests[-1].content
    start, end = content.index(b"PAR1"), content.rindex(b"PAR1") + 4
    return pyarrow.parquet.read_table(pa.BufferReader(content[start:end])).to_pylist()


def test_a_saved_dataset_is_sent_as_parquet(gateway: FakeGateway) -> None:
    table = pa.Table.from_pylist(rows(2500))
    saved = Path("saved")
    saved.mkdir()
    names = ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    for name, part in zip(names, (table[:1500], table[1500:]), strict=True):
        with pa.ipc.new_stream(saved / name, table.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (saved / "state.json").write_text(json.dumps(state))
    gateway.answer("POST /v1/files", FILE)
    result = millrace(gateway, "upload", "saved", "-p", "fine-tune")
    assert result.exit_code == 0, result.output
    assert b'filename="saved.parquet"' in gateway.requests[-1].content
    assert sent_rows(gateway) == rows(2500)


def test_a_folder_of_parquet_is_sent_as_one_file(gateway: FakeGateway) -> None:
    shards = Path("hub/data")
    shards.mkdir(parents=True)
    for number in (0, 1):
        part = pa.Table.from_pylist(rows(20)[number * 10 : number * 10 + 10])
        pyarrow.parquet.write_table(part, shards / f"train-0000{number}-of-00002.parquet")
    gateway.answer("POST /v1/files", FILE)
    assert millrace(gateway, "upload", "hub", "-p", "fine-tune").exit_code == 0
    assert sent_rows(gateway) == rows(20)
    pyarrow.parquet.write_table(part, shards / "test-00000-of-00001.parquet")
    result = millrace(gateway, "upload", "hub", "-p", "fine-tune")
    assert "holds the splits test, train" in str(result.exception)


def test_a_folder_that_is_no_dataset_is_said_so(gateway: FakeGateway) -> None:
    Path("folder").mkdir()
    arguments = ("upload", "folder", "-p")
    assert "is no dataset" in str(millrace(gateway, *arguments, "fine-tune").exception)
    assert "--purpose fine-tune" in millrace(gateway, *arguments, "batch").output
    Path("folder/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    said = str(millrace(gateway, *arguments, "fine-tune").exception)
    assert "give folder/<split>" in said
    Path("folder/dataset_dict.json").unlink()
    Path("folder/a.parquet").write_bytes(b"PAR1 not parquet PAR1")
    assert "cannot be read" in str(millrace(gateway, *arguments, "fine-tune").exception)
    assert gateway.requests == []


def test_without_pyarrow_it_says_what_to_install(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder").mkdir()
    Path("folder/a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = millrace(gateway, "upload", "folder", "-p", "fine-tune")
    assert "install pyarrow" in str(result.exception)


def test_a_large_file_goes_in_parts(gateway: FakeGateway, client: Millrace) -> None:
    Path("big.txt").write_bytes(b"0123456789")
    taken = receiving(gateway)
    done = uploads.upload(client, Path("big.txt"), "user_data", expire_seconds=7200, part_bytes=4)
    assert done == FILE
    assert taken == [b"0123", b"4567", b"89"]
    assert gateway.body(0) == {
        "bytes": 10,
        "filename": "big.txt",
        "mime_type": "application/octet-stream",
        "purpose": "user_data",
        "expires_after": {"anchor": "created_at", "seconds": 7200},
    }
    assert gateway.body() == {
        "part_ids": ["part-1", "part-2", "part-3"],
        "md5": hashlib.md5(b"0123456789").hexdigest(),
    }
    keys = [request.headers.get("idempotency-key") for request in gateway.requests]
    assert len({key for key in keys if key}) == 4, "every request that makes something has its own"


def test_an_upload_that_broke_off_is_taken_up_again(gateway: FakeGateway, client: Millrace) -> None:
    Path("big.txt").write_bytes(b"sameSAMEsame")
    receiving(gateway, failing_from=1)
    with pytest.raises(ServerError):
        uploads.upload(client, Path("big.txt"), "user_data", part_bytes=4)
    first = gateway.requests[0].headers["idempotency-key"]
    taken = receiving(gateway)
    gateway.answer(f"GET {PARTS}", page(part(7, b"same")))
    uploads.upload(client, Path("big.txt"), "user_data", part_bytes=4)
    assert taken == [b"SAME", b"same"], "one part is there once, and was needed twice"
    assert gateway.body()["part_ids"] == ["part-7", "part-1", "part-2"]
    begun = [r for r in gateway.requests if r.url.path == "/v1/uploads"]
    assert {request.headers["idempotency-key"] for request in begun} == {first}
    Path("big.txt").write_bytes(b"something else")
    uploads.upload(client, Path("big.txt"), "user_data", part_bytes=4)
    begun = [r for r in gateway.requests if r.url.path == "/v1/uploads"]
    assert begun[-1].headers["idempotency-key"] != first


def test_what_was_uploaded_already_is_not_sent_again(
    gateway: FakeGateway, client: Millrace
) -> None:
    Path("big.txt").write_bytes(b"0123456789")
    taken = receiving(gateway)
    gateway.answer("POST /v1/uploads", COMPLETED)
    assert uploads.upload(client, Path("big.txt"), "user_data", part_bytes=4) == FILE
    gateway.answer("POST /v1/uploads", {**COMPLETED, "file": None}, PENDING)
    assert taken == []
    assert uploads.upload(client, Path("big.txt"), "user_data", part_bytes=4) == FILE
    assert len(taken) == 3, "its file has gone since"


def test_files_as_a_table_and_one_by_one(gateway: FakeGateway) -> None:
    gateway.answer("GET /v1/files", page(FILE))
    output = millrace(gateway, "list", "--purpose", "fine-tune").output
    for expected in ("file-1", "pairs.jsonl", "fine-tune", "1.5 MB", "12"):
        assert expected in output
    assert gateway.requests[-1].url.params["purpose"] == "fine-tune"
    gateway.answer("GET /v1/files/file-1", FILE)
    assert json.loads(millrace(gateway, "show", "file-1", "--json").stdout) == FILE
    gateway.answer("DELETE /v1/files/file-1", {"id": "file-1", "object": "file", "deleted": True})
    assert "file-1 was deleted" in millrace(gateway, "delete", "file-1").output


def test_a_file_is_fetched_under_its_name_and_nothing_is_replaced(gateway: FakeGateway) -> None:
    gateway.answer("GET /v1/files/file-1", {**FILE, "filename": "../../etc/pairs.jsonl"})
    gateway.answer("GET /v1/files/file-1/content", httpx.Response(200, content=b"bytes"))
    assert millrace(gateway, "download", "file-1").stdout == "pairs.jsonl\n"
    assert Path("pairs.jsonl").read_bytes() == b"bytes"
    refused = millrace(gateway, "download", "file-1")
    assert isinstance(refused.exception, MillraceError)
    assert "is there already" in str(refused.exception)
    assert millrace(gateway, "download", "file-1", "--force").exit_code == 0


def test_a_download_that_breaks_off_leaves_nothing(gateway: FakeGateway) -> None:
    gateway.answer("GET /v1/files/file-1", FILE)
    gateway.answer("GET /v1/files/file-1/content", error(400, "damaged", code="content_damaged"))
    assert isinstance(millrace(gateway, "download", "file-1", "-o", "x").exception, BadRequest)
    assert list(Path.cwd().iterdir()) == []
