"""Models and versions as MLflow's API has them.

A description is the tag that MLflow keeps notes in. What the mesh knows of a version beside is in
tags that begin with ``millrace.``, which cannot be set.
Reference: https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from millrace.compressor.v1.service_pb2 import Target
from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway.rest.shapes import enum_word

DESCRIPTION = "mlflow.note.content"
OWN_TAGS = "millrace."
PREFIX = "/mlflow/api/2.0/mlflow"


def model_of(version: pb.Version) -> str:
    """Id of the model of a version."""
    return version.name.split("/")[3]


def model_fields(model: pb.Model) -> Mapping[str, Any]:
    """What a model can be searched and sorted by."""
    moment = milliseconds(model.create_time)
    name = model.name.rpartition("/")[2]
    return {
        "name": name,
        "creation_timestamp": moment,
        "last_updated_timestamp": moment,
        "tags": model_tags(model),
    }


def model_tags(model: pb.Model) -> dict[str, str]:
    known = {OWN_TAGS + "base_model": model.base_model} if model.base_model else {}
    return {**model.tags, **known}


def registered_model(model: pb.Model, newest: pb.Version | None) -> dict[str, Any]:
    """``RegisteredModel``; of its versions the newest one, which has the only stage."""
    fields = model_fields(model)
    aliases = [{"alias": a, "version": str(n)} for a, n in sorted(model.aliases.items())]
    return {
        "name": fields["name"],
        "creation_timestamp": fields["creation_timestamp"],
        "last_updated_timestamp": fields["last_updated_timestamp"],
        "description": model.tags.get(DESCRIPTION, ""),
        "latest_versions": [] if newest is None else [model_version(newest, model.aliases)],
        "tags": _pairs(fields["tags"]),
        "aliases": aliases,
    }


def version_fields(version: pb.Version) -> Mapping[str, Any]:
    """What a version can be searched and sorted by."""
    moment = milliseconds(version.create_time)
    return {
        "name": model_of(version),
        "version_number": version.number,
        "source_path": version_source(version),
        "creation_timestamp": moment,
        "last_updated_timestamp": moment,
        "tags": version_tags(version),
    }


def version_tags(version: pb.Version) -> dict[str, str]:
    job = version.checkpoint.name.split("/")[3:4]
    known = {
        "state": enum_word(pb.VersionState, version.state, "VERSION_STATE_"),
        "target": enum_word(Target, version.target, "TARGET_"),
        "digest": version.artifact.digest,
        "checkpoint": "/".join(version.checkpoint.name.split("/")[2:]),
        "step": str(version.checkpoint.step),
        "job": "".join(job),
    }
    return {**version.tags, **{OWN_TAGS + key: value for key, value in known.items() if value}}


def version_source(version: pb.Version) -> str:
    """Where MLflow's client downloads it: through the gateway."""
    return f"mlflow-artifacts:/models/{model_of(version)}/{version.number}"


def model_version(version: pb.Version, aliases: Mapping[str, int]) -> dict[str, Any]:
    """``ModelVersion``. A quarantined one is no version that may be used."""
    moment = milliseconds(version.create_time)
    is_good = version.state != pb.VERSION_STATE_QUARANTINED
    return {
        "name": model_of(version),
        "version": str(version.number),
        "creation_timestamp": moment,
        "last_updated_timestamp": moment,
        "current_stage": "None",
        "description": version.tags.get(DESCRIPTION, ""),
        "source": version_source(version),
        "run_id": "",
        "status": "READY" if is_good else "FAILED_REGISTRATION",
        "status_message": version.state_reason,
        "tags": _pairs(version_tags(version)),
        "aliases": sorted(a for a, number in aliases.items() if number == version.number),
    }


def milliseconds(moment: Timestamp) -> int:
    """Unix time."""
    return moment.ToMilliseconds()


def _pairs(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in sorted(tags.items())]
