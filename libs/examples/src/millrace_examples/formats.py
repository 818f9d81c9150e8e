"""The formats, and which of them a row is in.

Several may fit: ``{"messages": …, "label": …}`` is a classified conversation, and a prompt whose
graders read ``item.label``. The first in ``FORMATS`` is the likeliest; a job that needs another
kind of example reads the row in the format that gives it.
"""

from difflib import get_close_matches

from millrace_examples import (
    alpaca,
    classification,
    kto,
    openai_chat,
    openai_preference,
    openai_reinforcement,
    pairs,
    preference,
    prompt_completion,
    sharegpt,
    table,
    text,
)
from millrace_examples.conversions import converts
from millrace_examples.format import Format
from millrace_examples.kinds import Example
from millrace_examples.openai_reinforcement import ends_with_question
from millrace_examples.values import Mistake, Row, flaws, place_of

# From the most particular to the most general.
FORMATS: tuple[Format, ...] = (
    openai_preference.FORMAT,
    sharegpt.PREFERENCE,
    sharegpt.KTO,
    sharegpt.FORMAT,
    alpaca.PREFERENCE,
    alpaca.KTO,
    alpaca.FORMAT,
    preference.FORMAT,
    kto.FORMAT,
    prompt_completion.FORMAT,
    prompt_completion.PROMPT,
    classification.FORMAT,
    openai_chat.FORMAT,
    openai_reinforcement.FORMAT,
    text.FORMAT,
    pairs.FORMAT,
    table.FORMAT,
)

# What a row of a format always has, and one for a prompt template may lack.
_NEEDED = {"preference": "prompt", "alpaca": "output"}


def candidates(row: Row) -> list[Format]:
    """The formats that ``row`` may be in, the likeliest first."""
    found = [candidate for candidate in FORMATS if candidate.recognises(row)]
    if openai_chat.FORMAT in found and _has_item(row):
        found.remove(openai_chat.FORMAT)
    return found


def _has_item(row: Row) -> bool:
    """Whether a prompt has fields for graders beside it, so that no answer is missing."""
    return ends_with_question(row) and bool(openai_chat.FORMAT.unused_fields(row))


def alternatives(row: Row) -> list[Format]:
    """The formats to check a file in that begins with ``row``: a second only where it is open.

    Messages that end with a question are a prompt, or a conversation whose answer is missing;
    only the rest of the file can tell. So it is with flat rows that lack what their format needs:
    they may be rows for a prompt template.
    """
    found = candidates(row)
    if openai_reinforcement.FORMAT in found:
        return [found[0], openai_reinforcement.FORMAT]
    if table.FORMAT in found and _lacks(row, found[0]):
        return [found[0], table.FORMAT]
    return found[:1]


def _lacks(row: Row, likeliest: Format) -> bool:
    """Whether no prompt (or answer) stands where ``likeliest`` has it: a template may give it."""
    needed = _NEEDED.get(likeliest.name)
    return needed is not None and row.get(needed) is None


def candidates_for(row: Row, wanted: type[Example]) -> list[Format]:
    """Those of ``candidates`` whose rows can be read as ``wanted``."""
    return [candidate for candidate in candidates(row) if converts(candidate.kind, wanted)]


def row_mistakes(chosen: Format, row: Row) -> list[Mistake]:
    """What is wrong with ``row``, which should be in the format ``chosen``."""
    found = list(flaws(row))
    if found:
        return found
    if not chosen.recognises(row):
        other = [found for found in candidates(row) if found is not table.FORMAT]
        if other:
            message = f"holds {other[0].title}, but the file began with {chosen.title}"
            return [("", f"{message}: keep one format a file")]
    found = list(chosen.mistakes(row))
    if chosen.is_strict:
        known = ", ".join(sorted(chosen.fields - {"functions"}))
        message = f"is not a field of an example; it has {known}"
        found += [(place_of("", key), message) for key in sorted(chosen.unused_fields(row))]
    return found


def unknown_format(row: Row) -> str:
    """What to say of a first row that is in no format: all of them, and the nearest."""
    keys = [key[:100] for key in list(row)[:100]]
    scores = {
        candidate.name: sum(
            bool(get_close_matches(key, candidate.fields, cutoff=0.8)) for key in keys
        )
        for candidate in FORMATS
    }
    nearest = max(FORMATS, key=lambda known: (scores[known.name], -len(known.fields)))
    shapes = "; ".join(f"{candidate.name} {candidate.shape}" for candidate in FORMATS)
    hint = f"nearest is {nearest.name}, {nearest.shape}; " if scores[nearest.name] else ""
    return f"is in no known format; {hint}the formats are {shapes}"
