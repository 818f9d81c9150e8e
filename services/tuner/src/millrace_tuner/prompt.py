"""The prompt template by which a job makes examples of rows of columns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptWish:
    """A version of a prompt as it was asked for; 0 is the newest.

    Attributes:
        name: ``tenants/{tenant}/prompts/{prompt}``.
        completion: the column whose text is the answer; empty: found by its name.
    """

    name: str
    version: int = 0
    completion: str = ""


@dataclass(frozen=True)
class Prompt:
    """A version of a prompt with all that it says: a job needs nobody to tell it again.

    Attributes:
        digest: of ``template``, ``sha256:`` + hex.
        template: canonical JSON (``millrace_examples.prompt_template``).
    """

    name: str
    version: int
    digest: str
    template: str
    completion: str = ""
