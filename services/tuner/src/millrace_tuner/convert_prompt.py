"""A job's prompt, from and to its message."""

from millrace.tuner.v1 import prompt_pb2 as pb
from millrace.tuner.v1 import service_pb2
from millrace_tuner.prompt import Prompt, PromptWish


def prompt_from_proto(request: service_pb2.CreateJobRequest) -> PromptWish | None:
    if not request.HasField("prompt"):
        return None
    asked = request.prompt
    return PromptWish(asked.prompt, asked.version, asked.completion)


def prompt_to_proto(prompt: Prompt | None) -> pb.JobPrompt | None:
    if prompt is None:
        return None
    return pb.JobPrompt(
        prompt=prompt.name,
        version=prompt.version,
        completion=prompt.completion,
        digest=prompt.digest,
    )
