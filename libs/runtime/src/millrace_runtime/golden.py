"""Golden prompts: what a version and the one before it are both asked, and judged by.

The compressor leaves them in each artifact, ``golden.json``: a few windows of what the run held
out, and for tuned models the conversations of ``parity.json``. They are the same for every
checkpoint of a run. Two versions are compared on the prompts of the newer one; what they say is
scored as the mean log-probability of the continuation's tokens. Standard library only.

GoldenError   the prompts cannot be read
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "golden.json"
TOKENIZER_NAME = "tokenizer.json"


class GoldenError(Exception):
    """The file is damaged, or of a form that is not known."""


@dataclass(frozen=True)
class GoldenPrompt:
    """One prompt, and what followed it.

    Attributes:
        name: ``golden/…`` of a held-out window, ``chat/…`` of a conversation.
        prompt_ids, continuation_ids: token ids, by the artifact's own tokenizer.
        prompt, continuation: the same as texts, for versions with another tokenizer; special
            tokens are spelt out.
        messages: what was rendered, on ``parity.RENDERED_ON``; None: a window.
        original: the checkpoint's own mean log-probability of the continuation, in nats a token;
            None: not a finite number.
    """

    name: str
    prompt_ids: Sequence[int]
    continuation_ids: Sequence[int]
    prompt: str
    continuation: str
    original: float | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] = ()


def write(directory: Path, prompts: Sequence[GoldenPrompt]) -> None:
    document = {"prompts": [asdict(prompt) for prompt in prompts]}
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read(directory: Path) -> list[GoldenPrompt]:
    """The prompts of an artifact; none when it is of a time before there were any.

    Raises:
        GoldenError
    """
    path = directory / FILE_NAME
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [GoldenPrompt(**prompt) for prompt in document["prompts"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise GoldenError(f"{FILE_NAME} cannot be read: {error!r}") from error
