import json
from pathlib import Path

import pytest
from data_builders import conversation, write_text_jsonl

from millrace_data.jobs import corpus
from millrace_data.jobs.corpus import InputFile, LocalFiles, StandardLibrary
from millrace_runtime.jobs import JobError


def read_file(path: Path, name: str = "") -> list[corpus.Document]:
    return list(corpus.file_documents(InputFile(path=path, name=name)))


def test_text_jsonl_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = write_text_jsonl(tmp_path / "upload", ["one", "two"])
    documents = read_file(path, "mine.jsonl")
    assert [(d.origin, d.form, d.text) for d in documents] == [
        ("mine.jsonl:1", "prose", "one"),
        ("mine.jsonl:2", "prose", "two"),
    ]


def test_chat_is_rendered_between_markers(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("\n" + json.dumps(conversation(1)) + "\n")
    (document,) = read_file(path)
    turns = [f"{m['role']}\n{m['content']}" for m in conversation(1)["messages"]]
    assert document.form == "chat"
    assert document.origin == "chat.jsonl:2"
    assert document.text == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)


@pytest.mark.parametrize(("name", "form"), [("a.txt", "prose"), ("a.PY", "code"), ("a", "prose")])
def test_plain_text_is_one_document(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / name
    path.write_text("{not json}\nsecond line\n")
    (document,) = read_file(path)
    assert document.form == form
    assert document.text == "{not json}\nsecond line\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'{"text": "a"}\n{"text": 3}\n',
            "u.jsonl: line 2: must be a JSON object with a string in",
        ),
        (b'{"text": "a"}\n\n{"text"\n', "u.jsonl: line 3: is not JSON"),
        (b'{"text": "a\\ud800"}\n', "u.jsonl: line 1: text: has half a surrogate pair"),
        (b'{"body": "a"}\n', 'u.jsonl: line 1: must be a JSON object with a string in "text"'),
        (b"plain\n", "u.jsonl: line 1: is not JSON"),
        (b"", "u.jsonl: line 1: is not JSON"),
        (b"[1]\n", "u.jsonl: line 1: must be a JSON object"),
        (b'{"messages": []}\n', "u.jsonl: line 1: messages: must be a non-empty list"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "stored"
    path.write_bytes(content)
    with pytest.raises(JobError) as raised:
        read_file(path, "u.jsonl")
    assert raised.value.reason == "INVALID_FILE"
    assert expected in str(raised.value)


def test_plain_text_must_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nth\xffree\n")
    with pytest.raises(JobError, match=r"a\.txt: line 3: is not UTF-8 \(byte 10 of the file\)"):
        read_file(path)


def test_an_absent_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there is no file at") as raised:
        read_file(tmp_path / "absent.txt")
    assert raised.value.reason == "FILE_NOT_FOUND"


def test_maximum_bytes_stops_reading(tmp_path: Path) -> None:
    path = write_text_jsonl(tmp_path / "a.jsonl", ["x" * 40] * 5)
    found = corpus.read(LocalFiles(files=(InputFile(path=path),)), 100, seed=0)
    assert len(found.documents) == 2
    assert found.size_bytes == 80
    assert found.reached_maximum


def test_standard_library_has_no_installed_packages_and_no_test_suite() -> None:
    names = [name for name, _ in corpus.standard_library_files()]
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if "-packages/" in name or name.startswith("test/")]


def test_a_capped_standard_library_is_a_sample_of_all_of_it() -> None:
    source = StandardLibrary()
    one, again = (corpus.read(source, 300_000, seed=1) for _ in range(2))
    other = corpus.read(source, 300_000, seed=2)
    origins = [document.origin for document in one.documents]
    assert origins == [document.origin for document in again.documents]
    assert origins != [document.origin for document in other.documents]
    assert len({origin[0] for origin in origins}) > 3


def test_description_has_no_path_of_this_machine(tmp_path: Path) -> None:
    path = write_text_jsonl(tmp_path / "stored", ["one"])
    source = LocalFiles(files=(InputFile(path=path, name="mine.jsonl"),))
    described = corpus.describe(source)
    assert described["files"][0]["name"] == "mine.jsonl"
    assert str(tmp_path) not in json.dumps(described)
