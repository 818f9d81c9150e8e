"""``integrations`` of a fine-tuning job: its metrics, as a run in the tuner's MLflow.

Reference: https://platform.openai.com/docs/api-reference/fine-tuning/create#integrations

The OpenAI API has ``wandb`` alone, which is no program of one's own machines. What it says of a
run, MLflow can be told as well: the project is the experiment.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.tuner.v1 import service_pb2 as pb
from millrace_gateway.rest.shapes import RequestBody
from millrace_runtime.errors import InvalidArgument

Text = Annotated[str, Field(min_length=1, max_length=256)]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00,]*$")]
Tags = Annotated[list[Tag], Field(max_length=20)]


class Wandb(RequestBody):
    project: Text
    name: Text | None = None
    entity: Text | None = None
    tags: Tags | None = None


class Mlflow(RequestBody):
    """By default the experiment is named after the tuned model, the run after the job."""

    experiment: Text | None = None
    name: Text | None = None
    tags: Tags | None = None


class Integration(RequestBody):
    """``type``, and the object of that name."""

    type: Literal["wandb", "mlflow"]
    wandb: Wandb | None = None
    mlflow: Mlflow | None = None


Integrations = Annotated[list[Integration], Field(max_length=1)]


def integration_messages(integrations: list[Integration]) -> list[pb.Integration]:
    """
    Raises:
        InvalidArgument: the object of the type's name is missing, or another is there.
    """
    return [_message(one, f"integrations[{index}]") for index, one in enumerate(integrations)]


def _message(integration: Integration, place: str) -> pb.Integration:
    other = "mlflow" if integration.type == "wandb" else "wandb"
    if getattr(integration, other) is not None:
        raise InvalidArgument(
            f"'{place}.{other}' is given, but the type is '{integration.type}'; leave it out",
            reason="INVALID_VALUE",
            field=f"{place}.{other}",
        )
    wandb = integration.wandb
    if integration.type == "mlflow":
        asked = integration.mlflow or Mlflow()
        return pb.Integration(
            type="mlflow",
            experiment=asked.experiment or "",
            run_name=asked.name or "",
            tags=asked.tags or (),
        )
    if wandb is None:
        raise InvalidArgument(
            f"'{place}.wandb' must be given, with 'project'",
            reason="MISSING_REQUIRED_PARAMETER",
            field=f"{place}.wandb",
        )
    return pb.Integration(
        type="wandb",
        experiment=wandb.project,
        run_name=wandb.name or "",
        tags=wandb.tags or (),
        entity=wandb.entity or "",
    )


def integration_object(message: pb.Integration) -> dict[str, Any]:
    """As it was asked for. ``tracked_in`` is beyond the OpenAI API, and says where it goes."""
    run: dict[str, Any] = {"name": message.run_name or None, "tags": list(message.tags)}
    if message.type == "wandb":
        run |= {"project": message.experiment, "entity": message.entity or None}
    else:
        run |= {"experiment": message.experiment or None}
    return {"type": message.type, message.type: run, "tracked_in": "mlflow"}
