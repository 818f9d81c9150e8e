"""One spelling for equal text, so that hashes see duplicates and the vocabulary is not split."""

import re
import unicodedata
from dataclasses import replace

from millrace_data.jobs.corpus import Document

_NEWLINE = re.compile(r"\r\n?")
_TRAILING_SPACE = re.compile(r"[ \t]+$", re.MULTILINE)
_BYTE_ORDER_MARK = "\ufeff"


def normalize_text(text: str) -> str:
    """Unicode NFC (UAX #15), ``\\n`` newlines, no byte order mark, no space at line ends."""
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    text = text.lstrip(_BYTE_ORDER_MARK)
    if "\r" in text:
        text = _NEWLINE.sub("\n", text)
    return _TRAILING_SPACE.sub("", text)


def normalize_document(document: Document) -> Document:
    """``document`` with each segment normalised; a source file ends in one newline, prose in none.

    The turns of a chat keep theirs: the template decides what stands around them.
    """
    segments = tuple(normalize_text(segment) for segment in document.segments)
    if document.form != "chat" and segments[0]:
        ending = "\n" if document.form == "code" else ""
        segments = (segments[0].rstrip("\n") + ending,)
    return replace(document, segments=segments)
