"""Prompts: versions count up and never change, whoever asks twice or at once."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from data_builders import Parts

from millrace_data.domain import RequestKey
from millrace_data.prompts import MAXIMUM_VERSIONS_A_PAGE
from millrace_examples.prompt_template import template_digest
from millrace_runtime.errors import AlreadyExists, InvalidArgument, NotFound


def template(text: str = "Q: {{question}}") -> str:
    return json.dumps({"messages": [{"role": "user", "content": text}]})


def test_versions_count_up_and_stay(parts: Parts) -> None:
    prompt, first = parts.prompts.create("acme", "questions", template(), RequestKey())
    assert prompt.id.startswith("pmpt-")
    assert (first.number, prompt.latest_version) == (1, 1)
    assert first.digest == template_digest(json.loads(first.template))
    parts.clock.advance(5)
    second = parts.prompts.create_version("acme", prompt.id, template("Say."), RequestKey())
    assert second.number == 2
    assert second.digest != first.digest
    found = parts.prompts.get("acme", prompt.id)
    assert (found.latest_version, found.create_time) == (2, prompt.create_time)
    assert found.update_time == second.create_time
    assert parts.prompts.version("acme", prompt.id, 1) == first
    assert parts.prompts.version("acme", prompt.id, 0) == second
    with pytest.raises(NotFound, match="its newest is 2"):
        parts.prompts.version("acme", prompt.id, 3)


def test_a_request_that_comes_twice_is_carried_out_once(parts: Parts) -> None:
    key = RequestKey("r-1", "digest")
    prompt, first = parts.prompts.create("acme", "p", template(), key)
    assert parts.prompts.create("acme", "p", template(), key) == (prompt, first)
    added = parts.prompts.create_version("acme", prompt.id, template("2"), RequestKey("r-2", "d"))
    again = parts.prompts.create_version("acme", prompt.id, template("2"), RequestKey("r-2", "d"))
    assert again == added
    assert parts.prompts.create("acme", "p", template(), key)[1] == first
    with pytest.raises(AlreadyExists):
        parts.prompts.create("acme", "p", template(), RequestKey("r-1", "other"))
    with pytest.raises(AlreadyExists):
        parts.prompts.create_version("acme", prompt.id, template(), RequestKey("r-2", "other"))


def test_versions_made_at_once_have_numbers_of_their_own(parts: Parts) -> None:
    prompt, _ = parts.prompts.create("acme", "p", template(), RequestKey())

    def add(number: int) -> int:
        made = parts.prompts.create_version("acme", prompt.id, template(str(number)), RequestKey())
        return made.number

    with ThreadPoolExecutor(4) as pool:
        numbers = sorted(pool.map(add, range(8)))
    assert numbers == list(range(2, 10))
    assert parts.prompts.get("acme", prompt.id).latest_version == 9


def test_another_tenant_sees_nothing(parts: Parts) -> None:
    prompt, _ = parts.prompts.create("acme", "p", template(), RequestKey())
    attempts: list[Any] = [
        lambda: parts.prompts.get("other", prompt.id),
        lambda: parts.prompts.version("other", prompt.id, 1),
        lambda: parts.prompts.versions("other", prompt.id, 0, ""),
        lambda: parts.prompts.create_version("other", prompt.id, template(), RequestKey()),
        lambda: parts.prompts.delete("other", prompt.id),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()
    assert parts.prompts.page("other", 0, "") == ([], "")
    assert parts.prompts.get("acme", prompt.id) == prompt


def test_pages(parts: Parts) -> None:
    made = [parts.prompts.create("acme", f"p{n}", template(), RequestKey())[0] for n in range(5)]
    first, token = parts.prompts.page("acme", 3, "")
    rest, end = parts.prompts.page("acme", 3, token)
    assert [prompt.id for prompt in (*first, *rest)] == [p.id for p in reversed(made)]
    assert end == ""
    for number in range(2, MAXIMUM_VERSIONS_A_PAGE + 3):
        parts.prompts.create_version("acme", made[0].id, template(str(number)), RequestKey())
    versions, token = parts.prompts.versions("acme", made[0].id, 1000, "")
    assert len(versions) == MAXIMUM_VERSIONS_A_PAGE
    rest_versions, end = parts.prompts.versions("acme", made[0].id, 1000, token)
    assert [v.number for v in rest_versions] == [2, 1]
    assert end == ""
    with pytest.raises(InvalidArgument):
        parts.prompts.versions("acme", made[0].id, 0, "YWJj")


def test_deleted_is_gone_with_its_versions(parts: Parts) -> None:
    key = RequestKey("r-1", "digest")
    prompt, _ = parts.prompts.create("acme", "p", template(), key)
    parts.prompts.create_version("acme", prompt.id, template("2"), RequestKey())
    parts.prompts.delete("acme", prompt.id)
    for attempt in (parts.prompts.get, parts.prompts.delete):
        with pytest.raises(NotFound):
            attempt("acme", prompt.id)
    with pytest.raises(NotFound):
        parts.prompts.version("acme", prompt.id, 1)
    assert parts.prompts.create("acme", "p", template(), key)[0].id != prompt.id


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("{", "template"),
        ("[" * 100_000, "template"),
        ("[]", "template"),
        ("{}", "template.messages"),
        (template("{{two words}}"), "template.messages[0].content"),
    ],
)
def test_a_mistake_names_its_field(parts: Parts, given: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parts.prompts.create("acme", "p", given, RequestKey())
    assert (caught.value.reason, caught.value.field) == ("INVALID_PROMPT", field)


def test_any_character_is_kept(parts: Parts) -> None:
    text = "\u0000 \u2028 𝛼 {{x}}"
    _, version = parts.prompts.create("acme", "p", template(text), RequestKey())
    found = parts.prompts.version("acme", version.prompt_id, 1)
    assert json.loads(found.template)["messages"][0]["content"] == text
