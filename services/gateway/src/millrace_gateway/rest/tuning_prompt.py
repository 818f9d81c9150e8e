"""``prompt`` of a fine-tuning job: a template for files of columns. Beyond the OpenAI API."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from millrace.tuner.v1 import prompt_pb2 as pb
from millrace_gateway.rest.caller import Caller
from millrace_gateway.rest.shapes import Id, RequestBody
from millrace_runtime import names

# Where the protos' fields stand in a request, for errors that name them.
PROMPT_FIELDS: Mapping[str, str] = {"prompt.prompt": "prompt.id"}


class JobPrompt(RequestBody):
    """Each row gives the template's variables, and in ``completion`` the answer to learn."""

    id: Id
    version: Annotated[
        Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")] | None,
        Field(description="The newest, when it is left out."),
    ] = None
    completion: Annotated[
        Annotated[str, Field(min_length=1, max_length=128)] | None,
        Field(description="A column's name: completion, output or answer, when it is left out."),
    ] = None


def prompt_message(caller: Caller, prompt: JobPrompt | None) -> pb.JobPrompt | None:
    if prompt is None:
        return None
    return pb.JobPrompt(
        prompt=f"{caller.parent}/prompts/{prompt.id}",
        version=int(prompt.version or 0),
        completion=prompt.completion or "",
    )


def prompt_object(message: pb.JobPrompt) -> dict[str, Any]:
    """What a job says of its prompt; ``digest`` identifies the template."""
    return {
        "id": names.last_id(message.prompt),
        "version": str(message.version),
        "completion": message.completion or None,
        "digest": message.digest,
    }
