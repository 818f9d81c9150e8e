"""How a deployment's new versions are compared with those before them, in JSON."""

from typing import Annotated

from pydantic import Field

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway.rest.shapes import Int32, Number, RequestBody, given


class Analysis(RequestBody):
    """How much worse than the version before it a new one may be, and how sure one must be before
    it is reversed. What is not given, or null, is the default."""

    false_alarm_rate: Annotated[
        Annotated[Number, Field(ge=0.000001, le=0.5)] | None,
        Field(description="Of versions that are as good, reversed all the same; 0.01."),
    ] = None
    maximum_latency_increase: Annotated[
        Annotated[Number, Field(ge=0, le=100)] | None,
        Field(description="Of the median times to a token, relative; 0.2 is a fifth."),
    ] = None
    maximum_cut_increase: Annotated[
        Annotated[Number, Field(ge=0, le=1)] | None,
        Field(description="Of the share of answers cut at their largest length; 0.3."),
    ] = None
    maximum_score_decrease: Annotated[
        Annotated[Number, Field(ge=0, le=10)] | None,
        Field(description="Of the golden prompts' scores, in nats a token; 0.05."),
    ] = None
    minimum_pairs: Annotated[
        Annotated[Int32, Field(ge=0, le=1000)] | None,
        Field(description="Golden prompts that both versions must have been scored on; 0."),
    ] = None
    minimum_timed_answers: Annotated[
        Annotated[Int32, Field(ge=0, le=1_000_000)] | None,
        Field(description="Of either version to clients, in a step; 0."),
    ] = None


def analysis_message(body: Analysis) -> pb.Analysis:
    return pb.Analysis(**given(body))


def analysis(message: pb.Analysis) -> Analysis:
    return Analysis(**{field.name: value for field, value in message.ListFields()})
