"""The gRPC face of prompts: convert, call, convert."""

from datetime import datetime

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.data.v1 import prompts_pb2 as pb
from millrace.data.v1 import prompts_pb2_grpc
from millrace_data.domain import RequestKey
from millrace_data.prompts import Prompt, PromptApp, PromptVersion
from millrace_runtime import idempotency, names

PROMPT_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PromptService"].full_name
_PROMPT_NAME = "tenants/{tenant}/prompts/{prompt}"


class PromptServicer(prompts_pb2_grpc.PromptServiceServicer):
    """``millrace.data.v1.PromptService``; requests were validated by the interceptor."""

    def __init__(self, prompts: PromptApp) -> None:
        self._prompts = prompts

    def register(self, server: grpc.Server) -> None:
        prompts_pb2_grpc.add_PromptServiceServicer_to_server(self, server)

    def CreatePrompt(
        self, request: pb.CreatePromptRequest, context: grpc.ServicerContext
    ) -> pb.CreatePromptResponse:
        prompt, version = self._prompts.create(
            names.tenant_of(request.parent),
            request.display_name,
            request.template_json,
            RequestKey(request.request_id, idempotency.request_digest(request)),
        )
        return pb.CreatePromptResponse(prompt=_prompt(prompt), version=_version(version))

    def GetPrompt(
        self, request: pb.GetPromptRequest, context: grpc.ServicerContext
    ) -> pb.GetPromptResponse:
        return pb.GetPromptResponse(prompt=_prompt(self._prompts.get(*_key(request.name))))

    def ListPrompts(
        self, request: pb.ListPromptsRequest, context: grpc.ServicerContext
    ) -> pb.ListPromptsResponse:
        found, token = self._prompts.page(
            names.tenant_of(request.parent), request.page_size, request.page_token
        )
        return pb.ListPromptsResponse(prompts=map(_prompt, found), next_page_token=token)

    def CreatePromptVersion(
        self, request: pb.CreatePromptVersionRequest, context: grpc.ServicerContext
    ) -> pb.CreatePromptVersionResponse:
        version = self._prompts.create_version(
            *_key(request.parent),
            request.template_json,
            RequestKey(request.request_id, idempotency.request_digest(request)),
        )
        return pb.CreatePromptVersionResponse(version=_version(version))

    def GetPromptVersion(
        self, request: pb.GetPromptVersionRequest, context: grpc.ServicerContext
    ) -> pb.GetPromptVersionResponse:
        version = self._prompts.version(*_key(request.parent), request.number)
        return pb.GetPromptVersionResponse(version=_version(version))

    def ListPromptVersions(
        self, request: pb.ListPromptVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListPromptVersionsResponse:
        found, token = self._prompts.versions(
            *_key(request.parent), request.page_size, request.page_token
        )
        return pb.ListPromptVersionsResponse(versions=map(_version, found), next_page_token=token)

    def DeletePrompt(
        self, request: pb.DeletePromptRequest, context: grpc.ServicerContext
    ) -> pb.DeletePromptResponse:
        self._prompts.delete(*_key(request.name))
        return pb.DeletePromptResponse()


def _key(name: str) -> tuple[str, str]:
    """(tenant, id) of a prompt's name."""
    parts = names.parse(_PROMPT_NAME, name)
    return parts["tenant"], parts["prompt"]


def _prompt(prompt: Prompt) -> pb.Prompt:
    return pb.Prompt(
        name=prompt.name,
        display_name=prompt.display_name,
        latest_version=prompt.latest_version,
        create_time=_timestamp(prompt.create_time),
        update_time=_timestamp(prompt.update_time),
    )


def _version(version: PromptVersion) -> pb.PromptVersion:
    return pb.PromptVersion(
        name=version.name,
        number=version.number,
        template_json=version.template,
        digest=version.digest,
        create_time=_timestamp(version.create_time),
    )


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
