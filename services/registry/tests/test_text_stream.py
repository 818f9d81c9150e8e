"""TextStream against the plain rule: cut the whole text at the stop string completed first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_registry.engines.text_stream import TextStream, token_bytes

stop_lists = st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> str:
    """The reference: look at every prefix in turn; the first that ends in a stop string ends it."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))]
    return text


def feed(data: bytes, sizes: list[int], stops: list[str]) -> tuple[list[str], TextStream]:
    """Push ``data`` in pieces of the given sizes, then flush."""
    stream, pieces, at = TextStream(stops), [], 0
    for size in [*sizes, len(data)]:
        pieces.append(stream.push(data[at : at + size]))
        at += size
    return [*pieces, stream.flush()], stream


@given(st.text(alphabet="ab€x🙂"), st.lists(st.integers(1, 5), max_size=40), stop_lists)
def test_any_cutting_into_tokens_gives_the_same_text(
    text: str, sizes: list[int], stops: list[str]
) -> None:
    pieces, stream = feed(text.encode(), sizes, stops)
    assert "".join(pieces) == cut(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


@given(st.text(), st.lists(st.integers(1, 3), max_size=40))
def test_half_a_character_is_never_emitted(text: str, sizes: list[int]) -> None:
    pieces, _ = feed(text.encode(), sizes, [])
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)
    assert "".join(pieces) == text


@given(st.binary(), st.lists(st.integers(1, 3), max_size=40))
def test_bytes_that_are_not_text_become_replacement_characters(
    data: bytes, sizes: list[int]
) -> None:
    pieces, _ = feed(data, sizes, [])
    assert "".join(pieces) == data.decode(errors="replace")


def test_text_is_held_only_while_it_may_become_a_stop_string() -> None:
    stream = TextStream(["\n\n"])
    assert stream.push(b"one\n") == "one"
    assert stream.push(b"two\n") == "\ntwo"
    assert stream.push(b"\nthree") == ""
    assert stream.stopped
    assert stream.push(b"four") == "" and stream.flush() == ""


def test_the_longer_of_two_stop_strings_completed_at_once_wins() -> None:
    stream = TextStream(["c", "bc"])
    assert stream.push(b"abc") == "a"


def test_held_text_is_returned_at_the_end() -> None:
    stream = TextStream(["<end>"])
    assert stream.push("a€<en".encode()) == "a€"
    assert stream.flush() == "<en"


def test_a_character_that_never_ends_is_replaced() -> None:
    stream = TextStream()
    assert stream.push("🙂".encode()[:3]) == ""
    assert stream.flush() == "\ufffd"


def test_empty_stop_strings_are_ignored() -> None:
    assert TextStream([""]).push(b"text") == "text"


def test_special_tokens_spell_nothing() -> None:
    assert token_bytes({b"a": 0, b"<end>": 1, b"\xe2": 2}, ["a", "", "\ufffd"]) == [
        b"a",
        b"",
        b"\xe2",
    ]


def test_a_tokenizer_that_is_not_byte_level_is_refused() -> None:
    with pytest.raises(ValueError, match="not byte-level: 1 tokens"):
        token_bytes({"▁a".encode(): 0}, [" a"])
