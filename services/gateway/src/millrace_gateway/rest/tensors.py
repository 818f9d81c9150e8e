"""Bodies of the Open Inference Protocol's REST to the messages of its gRPC, and back.

Binary tensors are cut out and appended as they are; numbers and texts in JSON become raw tensors,
since Triton takes either raw tensors or typed ones in a request, and not both.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/r24.10/docs/protocol/extension_binary_data.md
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import orjson
from google.protobuf.message import Message
from pydantic import Field
from tritonclient.grpc import service_pb2

from millrace_gateway.rest.shapes import Number, RequestBody
from millrace_runtime.errors import FailedPrecondition, InvalidArgument

_LENGTH = struct.Struct("<I")  # what stands before each element of a BYTES tensor
_MOST_INT64 = 2**63 - 1
# How elements are packed, and as which JSON values they come.
_FORMATS: Mapping[str, tuple[str, frozenset[type]]] = {
    "BOOL": ("?", frozenset((bool,))),
    **{
        name: (code, frozenset((int,)))
        for name, code in (
            ("UINT8", "B"),
            ("UINT16", "H"),
            ("UINT32", "I"),
            ("UINT64", "Q"),
            ("INT8", "b"),
            ("INT16", "h"),
            ("INT32", "i"),
            ("INT64", "q"),
        )
    },
    **{name: (code, frozenset((int, float))) for name, code in (("FP32", "f"), ("FP64", "d"))},
}
_BINARY_ONLY = frozenset(("FP16", "BF16"))  # JSON has no agreed form for them

Name = Annotated[str, Field(min_length=1, max_length=1024)]
Dimension = Annotated[int, Field(ge=0, le=_MOST_INT64)]
Parameters = dict[str, bool | int | Number | str]


class Input(RequestBody):
    """A tensor; its elements are in ``data``, or follow the JSON as binary."""

    name: Name
    shape: Annotated[list[Dimension], Field(max_length=64)]
    datatype: str
    parameters: Parameters = Field(default_factory=dict)
    data: list[Any] | None = None


class Output(RequestBody):
    """An output that is wanted."""

    name: Name
    parameters: Parameters = Field(default_factory=dict)


class InferenceBody(RequestBody):
    """The JSON of an inference request. A model named here must be the URL's."""

    id: str | None = None
    model_name: str | None = None
    parameters: Parameters = Field(default_factory=dict)
    inputs: list[Input]
    outputs: list[Output] = Field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """How outputs are wanted: which as binary, and those that are not named."""

    binary: Mapping[str, bool]
    is_binary: bool

    def wants_binary(self, output: str) -> bool:
        return self.binary.get(output, self.is_binary)


def split(content: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a request body, and the binary tensors behind it.

    Args:
        header_length: the header ``Inference-Header-Content-Length``, if there was one.

    Raises:
        InvalidArgument: the header cannot be.
    """
    if header_length is None:
        return content, memoryview(b"")
    length = int(header_length) if header_length.isdecimal() and len(header_length) < 16 else -1
    if not 0 <= length <= len(content):
        raise InvalidArgument(
            f"Inference-Header-Content-Length must be a number up to {len(content)}, the size of "
            f"the body; it is {header_length!r}"
        )
    if not length:
        raise InvalidArgument(
            "a raw binary request is not supported; say in JSON which input the bytes are"
        )
    return content[:length], memoryview(content)[length:]


def request_message(body: InferenceBody, binary: memoryview) -> Any:
    """The ModelInferRequest that ``body`` means; its model is still to be named.

    Raises:
        InvalidArgument: a tensor's data is not what its type, shape or size say.
    """
    message = service_pb2.ModelInferRequest(id=body.id or "")
    for name, value in body.parameters.items():
        if name.startswith("triton_"):
            raise InvalidArgument(f"the parameter {name!r} is reserved", field=f"parameters.{name}")
        if name != "binary_data_output":
            set_parameter(message.parameters[name], value)
    at = 0
    for index, given in enumerate(body.inputs):
        size = _binary_size(given, f"inputs[{index}]", len(binary) - at)
        _add_input(message, given, f"inputs[{index}]", binary[at : at + (size or 0)])
        at += size or 0
    if at != len(binary):
        raise InvalidArgument(
            f"{len(binary) - at} bytes follow the JSON that belong to no input; every binary "
            "input needs the parameter 'binary_data_size'",
            field="inputs",
        )
    for wanted in body.outputs:
        output = message.outputs.add(name=wanted.name)
        for name, value in wanted.parameters.items():
            if name != "binary_data":
                set_parameter(output.parameters[name], value)
    return message


def form(body: InferenceBody) -> Form:
    """How ``body`` wants its outputs.

    Raises:
        InvalidArgument: a switch is no boolean.
    """
    binary = {
        output.name: _switch(output.parameters, "binary_data", f"outputs[{index}].parameters")
        for index, output in enumerate(body.outputs)
        if "binary_data" in output.parameters
    }
    return Form(binary, _switch(body.parameters, "binary_data_output", "parameters"))


def response_body(response: Any, wanted: Form) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of the JSON in it when binary tensors follow.

    NaN and infinities become null in JSON, which has no such numbers.

    Raises:
        FailedPrecondition: an output can only be had as binary.
    """
    document: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        document["id"] = response.id
    if parameters := plain_parameters(response):
        document["parameters"] = parameters
    outputs, tensors = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        described: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        parameters = plain_parameters(output)
        if wanted.wants_binary(output.name):
            parameters["binary_data_size"] = len(raw)
            tensors.append(raw)
        else:
            described["data"] = unpack(output.name, output.datatype, raw)
        outputs.append({**described, "parameters": parameters} if parameters else described)
    header = orjson.dumps({**document, "outputs": outputs})
    return b"".join((header, *tensors)), len(header) if tensors else None


def pack(datatype: str, values: Sequence[Any], where: str) -> bytes:
    """Elements as a raw tensor: little-endian, row-major, each text behind its length.

    Raises:
        InvalidArgument: an element is not of the type, or the type cannot be given in JSON.
    """
    if datatype == "BYTES":
        return b"".join(map(element, _texts(values, where)))
    if datatype not in _FORMATS:
        hint = "; send it as binary" if datatype in _BINARY_ONLY else ""
        raise InvalidArgument(
            f"{where}.datatype: {datatype!r} is no type whose data JSON can hold{hint}",
            field=f"{where}.datatype",
        )
    code, kinds = _FORMATS[datatype]
    if not set(map(type, values)) <= kinds:
        raise _not_of(datatype, where)
    try:
        return struct.pack(f"<{len(values)}{code}", *values)
    except (struct.error, OverflowError) as error:
        raise _not_of(datatype, where) from error


def unpack(name: str, datatype: str, raw: bytes) -> list[Any]:
    """A raw tensor's elements, flat.

    Raises:
        FailedPrecondition: JSON cannot hold them.
    """
    if datatype == "BYTES":
        return _unpacked_texts(name, raw)
    if datatype not in _FORMATS:
        raise _needs_binary(name, f"is of type {datatype}")
    code, _ = _FORMATS[datatype]
    return list(struct.unpack(f"<{len(raw) // struct.calcsize('<' + code)}{code}", raw))


def element(text: str) -> bytes:
    """One element of a BYTES tensor."""
    content = text.encode()
    return _LENGTH.pack(len(content)) + content


def set_parameter(parameter: Any, value: bool | float | str) -> None:
    """Give an InferParameter the value that JSON had."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        kind = "int64_param" if value <= _MOST_INT64 else "uint64_param"
        setattr(parameter, kind, value)
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def plain_parameters(message: Any) -> dict[str, Any]:
    """The parameters of a message as JSON values."""
    found = {}
    for name, parameter in message.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, kind) if kind else None
    return found


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON: every field by its own name, numbers as numbers, enums as words."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            of = kind.fields_by_name["value"]
            document[field.name] = {str(key): _plain(of, item) for key, item in value.items()}
        elif field.is_repeated:
            document[field.name] = [_plain(field, item) for item in value]
        elif kind is None or message.HasField(field.name):
            document[field.name] = _plain(field, value)
    return document


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _binary_size(given: Input, where: str, room: int) -> int | None:
    """How many bytes of the binary part are the input's; None when its data is in the JSON."""
    size = given.parameters.get("binary_data_size")
    place = f"{where}.parameters.binary_data_size"
    if size is None:
        return None
    if given.data is not None:
        raise InvalidArgument(f"{place}: the input has 'data' as well", field=place)
    if type(size) is not int or not 0 <= size <= room:
        raise InvalidArgument(
            f"{place}: must be a number of bytes that follow the JSON, of which {room} are left",
            field=place,
        )
    return size


def _add_input(message: Any, given: Input, where: str, binary: memoryview) -> None:
    tensor = message.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
    for name, value in given.parameters.items():
        if name != "binary_data_size":
            set_parameter(tensor.parameters[name], value)
    if "binary_data_size" in given.parameters:
        message.raw_input_contents.append(bytes(binary))
        return
    if given.data is None:
        raise InvalidArgument(
            f"{where}: give 'data', or binary data and its 'binary_data_size'", field=where
        )
    values = _flat(given.data, f"{where}.data")
    if len(values) != math.prod(given.shape):
        raise InvalidArgument(
            f"{where}.data: has {len(values)} elements, and the shape {given.shape} has "
            f"{math.prod(given.shape)}",
            field=f"{where}.data",
        )
    message.raw_input_contents.append(pack(given.datatype, values, where))


def _flat(data: list[Any], where: str) -> list[Any]:
    """Elements in row-major order; they may come nested as the tensor is, or flat."""
    while any(isinstance(item, list) for item in data):
        if not all(isinstance(item, list) for item in data):
            raise InvalidArgument(f"{where}: elements lie at different depths", field=where)
        data = list(chain.from_iterable(data))
    return data


def _texts(values: Sequence[Any], where: str) -> Sequence[str]:
    if not all(isinstance(value, str) for value in values):
        raise _not_of("BYTES", where)
    return values


def _unpacked_texts(name: str, raw: bytes) -> list[str]:
    texts, at = [], 0
    try:
        while at < len(raw):
            end = at + _LENGTH.size + _LENGTH.unpack_from(raw, at)[0]
            texts.append(raw[at + _LENGTH.size : end].decode())
            at = end
    except UnicodeDecodeError as error:
        raise _needs_binary(name, "holds bytes that are no text") from error
    return texts


def _switch(parameters: Parameters, name: str, where: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}.{name}: must be a boolean", field=f"{where}.{name}")
    return value


def _not_of(datatype: str, where: str) -> InvalidArgument:
    return InvalidArgument(
        f"{where}.data: holds an element that is no {datatype}", field=f"{where}.data"
    )


def _needs_binary(name: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the output {name!r} {why}; ask for it with the parameter 'binary_data'",
        reason="BINARY_DATA_NEEDED",
        field="outputs",
    )
