import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_runtime import names, paging
from millrace_runtime.errors import InvalidArgument


def test_a_name_is_taken_apart_by_its_template() -> None:
    assert names.parse("tenants/{tenant}/runs/{run}", "tenants/acme/runs/run-1") == {
        "tenant": "acme",
        "run": "run-1",
    }


@pytest.mark.parametrize("name", ["", "tenants/acme", "tenants/acme/runs/", "x/tenants/a/runs/b"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        names.parse("tenants/{tenant}/runs/{run}", name)


def test_ids_sort_by_time_and_know_it() -> None:
    before = time.time()
    made = []
    for _ in range(3):
        made.append(names.new_id("run"))
        time.sleep(0.002)
    assert made == sorted(made)
    assert before - 0.001 <= names.id_time_seconds(made[0]) <= time.time()


def test_of_one_millisecond_the_later_id_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    made = [names.new_id("run") for _ in range(1000)]
    assert made == sorted(set(made))
    assert {names.id_time_seconds(id) for id in made} == {1_800_000_000.0}


@given(st.text(max_size=40))
def test_only_own_ids_hold_a_time(text: str) -> None:
    with pytest.raises(ValueError, match="holds no time"):
        names.id_time_seconds(text)


@given(st.text(max_size=80))
def test_a_page_token_returns_what_was_put_in(last_id: str) -> None:
    assert paging.decode_token(paging.encode_token(last_id)) == last_id


@pytest.mark.parametrize("token", ["*", "a", "//8"])
def test_a_foreign_page_token_is_the_users_mistake(token: str) -> None:
    with pytest.raises(InvalidArgument):
        paging.decode_token(token)
