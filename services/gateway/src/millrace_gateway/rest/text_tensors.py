"""Triton's generate extension: flat JSON to an inference request, and answers back to flat JSON.

Fields of the body that are called as inputs of the model become those tensors, the others
parameters:
https://github.com/triton-inference-server/server/blob/r24.10/docs/protocol/extension_generate.md
A text engine of Millrace takes the protocol's own words as well, ``text_input`` with sampling
``parameters``, and answers ``text_output``:
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/generate_rest.yaml
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from tritonclient.grpc import service_pb2

from millrace_gateway.rest.tensors import pack, plain_parameters, set_parameter, unpack
from millrace_runtime.errors import FailedPrecondition, InvalidArgument

_TEXT_INPUTS = ("prompt", "sampling")
_DEFAULT_MAX_TOKENS = 20  # as the protocol has it
_VECTORS = {"embedding", "embedding_index"}


class GenerateBody(BaseModel):
    """Fields beyond these are the model's."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: str | None = None
    text_input: Annotated[str, Field(min_length=1)] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """The model's fields, those under ``parameters`` included.

        Raises:
            InvalidArgument: one is given twice.
        """
        beside = self.model_extra or {}
        if twice := beside.keys() & self.parameters.keys():
            name = min(twice)
            raise InvalidArgument(f"{name!r} is given twice", field=f"parameters.{name}")
        return {**beside, **self.parameters}


def request_message(body: GenerateBody, metadata: Any) -> Any:
    """The ModelInferRequest that ``body`` means; its model is still to be named.

    Args:
        metadata: the ModelMetadataResponse of the version that is asked.

    Raises:
        InvalidArgument: a field fits neither the model's inputs nor a parameter.
    """
    inputs = {tensor.name: tensor for tensor in metadata.inputs}
    fields = body.fields()
    message = service_pb2.ModelInferRequest(id=body.id or "")
    if body.text_input is not None:
        if "text_input" in inputs:
            fields["text_input"] = body.text_input
        elif all(name in inputs for name in _TEXT_INPUTS):
            fields = _text_fields(body.text_input, fields)
        else:
            raise InvalidArgument(
                f"the model has no input 'text_input'; it has: {', '.join(inputs)}",
                field="text_input",
            )
    for name, value in fields.items():
        if name in inputs:
            _add_input(message, inputs[name], value)
        elif isinstance(value, bool | int | float | str) and not name.startswith("triton_"):
            set_parameter(message.parameters[name], value)
        else:
            raise InvalidArgument(f"{name}: is no input of the model, and no parameter", field=name)
    return message


def answer(response: Any, body: GenerateBody) -> dict[str, Any]:
    """What one response says: its outputs by name, one element by itself, more as a list.

    Raises:
        FailedPrecondition: JSON cannot hold an output.
    """
    said: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        **_own_parameters(response),
    }
    if response.id:
        said["id"] = response.id
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = unpack(output.name, output.datatype, raw)
        said[output.name] = values[0] if len(values) == 1 else values
    if body.text_input is not None and "text_output" not in said and "text" in said:
        said["text_output"] = said.pop("text")
    return said


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answers of a text engine as one: texts follow one another, the last one's facts hold.

    Raises:
        FailedPrecondition: they are several, and not of a text engine.
    """
    whole = dict(parts[-1]) if parts else {}
    text = "text_output" if "text_output" in whole else "text"
    if len(parts) == 1:
        return whole
    if not parts or not all(text in part and "token_count" in part for part in parts):
        raise FailedPrecondition(
            f"the model answered in {len(parts)} parts; use generate_stream",
            reason="MODEL_IS_DECOUPLED",
            field="model",
        )
    whole[text] = "".join(part[text] for part in parts)
    whole["token_count"] = sum(part["token_count"] for part in parts)
    if "logprobs" in whole:
        lists = [orjson.loads(part["logprobs"]) for part in parts if "logprobs" in part]
        whole["logprobs"] = orjson.dumps([entry for part in lists for entry in part]).decode()
    for vectors in _VECTORS & whole.keys():
        # One element came by itself, not in a list.
        lists = [part[vectors] for part in parts if vectors in part]
        whole[vectors] = [value for part in lists for value in _as_list(part)]
    return whole


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _own_parameters(response: Any) -> dict[str, Any]:
    """What the model said beside its outputs; Triton's own marks are for streams over gRPC."""
    parameters = plain_parameters(response)
    return {key: value for key, value in parameters.items() if not key.startswith("triton_")}


def _text_fields(text: str, sampling: dict[str, Any]) -> dict[str, Any]:
    if sampling.pop("details", False) is not False:
        raise InvalidArgument(
            "parameters.details: is not supported; answers say their 'finish_reason' anyway",
            field="parameters.details",
        )
    sampling.setdefault("max_tokens", _DEFAULT_MAX_TOKENS)
    return {"prompt": text, "sampling": orjson.dumps(sampling).decode()}


def _add_input(message: Any, declared: Any, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    shape = _shape(list(declared.shape), len(values))
    if shape is None:
        raise InvalidArgument(
            f"{declared.name}: {len(values)} elements do not make a tensor of the shape "
            f"{list(declared.shape)}",
            field=declared.name,
        )
    message.inputs.add(name=declared.name, datatype=declared.datatype, shape=shape)
    message.raw_input_contents.append(pack(declared.datatype, values, declared.name))


def _shape(declared: list[int], count: int) -> list[int] | None:
    """A shape of ``count`` elements: the innermost open dimension takes them, others are 1."""
    fixed = math.prod(size for size in declared if size >= 0)
    if not fixed or count % fixed:
        return None
    left, shape = count // fixed, list(declared)
    for index in reversed(range(len(shape))):
        if shape[index] < 0:
            shape[index], left = left, 1
    return shape if left == 1 else None
