"""A job's metrics as the OpenAI API hands them out: one CSV row a step."""

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

FIRST_COLUMNS = (
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
)


def to_csv(lines: Iterable[str]) -> bytes:
    """``metrics.jsonl`` as CSV. Lines that name the same step make one row; a cell is empty
    where nothing was measured. OpenAI's columns come first, whatever the method."""
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        measured = json.loads(line)
        rows.setdefault(int(measured["step"]), {}).update(measured)
    text = io.StringIO()
    further = {name for row in rows.values() for name in row} - set(FIRST_COLUMNS)
    columns = [*FIRST_COLUMNS, *sorted(further)]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    return text.getvalue().encode()
