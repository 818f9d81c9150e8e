import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_data.jobs.corpus import Document, Form
from millrace_data.jobs.normalize import normalize_document, normalize_text

LINES = st.text(alphabet=st.sampled_from("ae\u0301\u00e9\r\n\t \ufeff\u212a"), max_size=40)


def test_one_spelling() -> None:
    assert normalize_text("\ufeffcafe\u0301 \t\r\nx\ry  ") == "caf\u00e9\nx\ny"


@pytest.mark.parametrize(
    ("form", "expected"), [("code", "x = 1\n"), ("prose", "x = 1"), ("chat", "x = 1\n\n\n")]
)
def test_how_a_document_ends(form: Form, expected: str) -> None:
    assert normalize_document(Document("a", form, ("x = 1\n\n\n",))).segments == (expected,)


@given(st.one_of(st.text(), LINES))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalize_text(text)
    assert normalize_text(once) == once
    assert "\r" not in once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(line.endswith((" ", "\t")) for line in once.split("\n"))
