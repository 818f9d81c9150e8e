"""Recipes of compression in JSON: how a checkpoint becomes an artifact, where there is a choice."""

from typing import Annotated, Literal

from google.protobuf import json_format
from pydantic import Field

from millrace.compressor.v1 import service_pb2 as pb
from millrace_gateway.rest.shapes import Int32, Int64, Number, RequestBody

Share = Annotated[Number, Field(ge=0, lt=1)]
_METHOD = "WEIGHT_METHOD_"
_SOURCE = "CALIBRATION_SOURCE_"


class Calibration(RequestBody):
    """What activations are observed on."""

    source: Annotated[
        Literal["own", "generic"] | None,
        Field(description="Rows of the model's own training data (the default), or any text."),
    ] = None
    samples: Annotated[
        Annotated[Int32, Field(ge=1, le=4096)] | None, Field(description="Windows of tokens.")
    ] = None
    seed: Annotated[Int64, Field(ge=0)] | None = None
    compare: Annotated[
        bool | None,
        Field(description="Whether the other source is measured too; it takes twice as long."),
    ] = None


class Pruning(RequestBody):
    """Shares of a model that are taken away, by importance on calibration data."""

    depth: Annotated[Share | None, Field(description="Of the decoder's layers.")] = None
    heads: Annotated[Share | None, Field(description="Of the key/value groups.")] = None
    width: Annotated[Share | None, Field(description="Of the feed-forward's units.")] = None
    rounds: Annotated[Int32, Field(ge=1, le=32)] | None = None
    recovery: Annotated[
        bool | None, Field(description="Whether a tuning job distils the original into it.")
    ] = None


class Recipe(RequestBody):
    """What is not given is the target's default; what the target does not have is a 400."""

    group_size: Annotated[
        Annotated[Int32, Field(ge=8, le=1024)] | None,
        Field(description="Weights that share one scale, for targets of four bits."),
    ] = None
    weight_method: Literal["round_to_nearest", "awq", "gptq", "scale_estimation"] | None = None
    kv_cache_int8: Annotated[
        bool | None, Field(description="Keys and values in 8 bits, for OpenVINO.")
    ] = None
    calibration: Calibration | None = None
    pruning: Pruning | None = None


def recipe_message(body: Recipe | None) -> pb.Recipe:
    document = body.model_dump(exclude_none=True) if body else {}
    if "weight_method" in document:
        document["weight_method"] = _METHOD + document["weight_method"].upper()
    if "source" in document.get("calibration", {}):
        source = document["calibration"]["source"]
        document["calibration"]["source"] = _SOURCE + source.upper()
    return json_format.ParseDict(document, pb.Recipe())


def recipe(message: pb.Recipe) -> Recipe:
    document = json_format.MessageToDict(message, preserving_proto_field_name=True)
    if "weight_method" in document:
        document["weight_method"] = document["weight_method"].removeprefix(_METHOD).lower()
    given = document.get("calibration", {})
    if "source" in given:
        given["source"] = given["source"].removeprefix(_SOURCE).lower()
    if "seed" in given:  # JSON of protobuf has integers of 64 bits as texts
        given["seed"] = int(given["seed"])
    return Recipe.model_validate(document)
