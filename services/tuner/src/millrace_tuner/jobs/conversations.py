"""Reading a fine-tuning file as conversations, with the errors of a job.

The formats are those of ``millrace_examples``, by which the data service checks an upload; a job
checks again, because what it reads may have come by another road. Standard library only, so
that a bad file is refused before anything heavy is imported.
"""

from pathlib import Path

from millrace_examples.kinds import Conversation
from millrace_examples.reading import ExamplesError, read
from millrace_runtime.jobs import JobError

__all__ = ["Conversation", "read_conversations"]


def read_conversations(path: Path, expected_sha256: str, purpose: str) -> list[Conversation]:
    """All conversations of a file whose content is proven by its digest; blank lines are skipped.

    ``purpose`` names the file in messages: "training file", "validation file".

    Raises:
        JobError: FILE_MISSING, FILE_CHANGED when the digest differs, WRONG_FORMAT when it holds
            no conversations, INVALID_EXAMPLE naming line and field, EMPTY_FILE.
    """
    try:
        return read(path, expected_sha256, Conversation, purpose, "supervised")
    except ExamplesError as error:
        raise JobError(error.reason, str(error)) from None
