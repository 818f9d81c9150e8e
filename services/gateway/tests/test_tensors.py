"""Bodies of the Open Inference Protocol to messages and back, held against ``tritonclient``."""

import json
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import service_pb2
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from millrace_gateway.rest import tensors, text_tensors
from millrace_gateway.rest.tensors import InferenceBody
from millrace_gateway.rest.text_tensors import GenerateBody
from millrace_runtime.errors import FailedPrecondition, InvalidArgument

NUMBERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
TYPES = [np.dtype(kind) for kind in (*NUMBERS, np.float32, np.float64, np.bool_)]
PLENTY = settings(max_examples=80, deadline=None)

shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


def elements(kind: np.dtype[Any]) -> st.SearchStrategy[Any]:
    if kind.kind == "f":
        width: Any = kind.itemsize * 8
        return st.floats(allow_nan=False, allow_infinity=False, width=width)
    return arrays.from_dtype(kind)


@st.composite
def tensors_of_any_type(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = draw(shapes)
    if draw(st.booleans()):
        texts = st.text(st.characters(codec="utf-8"), max_size=5).map(str.encode)
        return draw(arrays.arrays(np.object_, shape, elements=texts))
    kind = draw(st.sampled_from(TYPES))
    return draw(arrays.arrays(kind, shape, elements=elements(kind)))


def raw_of(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != np.object_:
        return array.tobytes()
    # Of an empty tensor the client makes nothing at all.
    return serialize_byte_tensor(array).item() if array.size else b""


def asked(content: bytes, header_length: int | None) -> tuple[Any, tensors.Form]:
    length = None if header_length is None else str(header_length)
    header, binary = tensors.split(content, length)
    body = InferenceBody.model_validate(orjson.loads(header))
    return tensors.request_message(body, binary), tensors.form(body)


@PLENTY
@given(st.lists(st.tuples(tensors_of_any_type(), st.booleans()), max_size=4))
def test_what_the_client_writes_is_read(
    inputs: list[tuple[np.ndarray[Any, Any], bool]],
) -> None:
    given = []
    for number, (array, is_binary) in enumerate(inputs):
        tensor = InferInput(str(number), list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=is_binary)
        given.append(tensor)
    content, length = InferenceServerClient.generate_request_body(given, request_id="r")
    message, wanted = asked(content, length)
    assert message.id == "r"
    assert wanted.wants_binary("any"), "the client asks for binary unless told otherwise"
    assert list(message.raw_input_contents) == [raw_of(array) for array, _ in inputs]
    assert [tuple(tensor.shape) for tensor in message.inputs] == [a.shape for a, _ in inputs]
    assert [tensor.datatype for tensor in message.inputs] == [
        np_to_triton_dtype(array.dtype) for array, _ in inputs
    ]
    assert all(not tensor.parameters for tensor in message.inputs)


@PLENTY
@given(st.lists(st.tuples(tensors_of_any_type(), st.booleans()), max_size=4))
def test_what_is_written_the_client_reads(
    outputs: list[tuple[np.ndarray[Any, Any], bool]],
) -> None:
    wanted = [
        InferRequestedOutput(str(number), binary_data=is_binary)
        for number, (_, is_binary) in enumerate(outputs)
    ]
    content, length = InferenceServerClient.generate_request_body([], outputs=wanted)
    _, form = asked(content, length)
    response = service_pb2.ModelInferResponse(model_name="demo", model_version="3", id="r")
    for number, (array, _) in enumerate(outputs):
        kind = np_to_triton_dtype(array.dtype)
        response.outputs.add(name=str(number), datatype=kind, shape=array.shape)
        response.raw_output_contents.append(raw_of(array))
    body, json_length = tensors.response_body(response, form)
    result = InferenceServerClient.parse_response_body(body, header_length=json_length)
    assert result.get_response()["model_name"] == "demo"
    for number, (array, is_binary) in enumerate(outputs):
        read = result.as_numpy(str(number))
        if array.dtype == np.object_ and not is_binary:
            read = np.array([text.encode() for text in read.reshape(-1)], np.object_)
        assert read.reshape(-1).tolist() == array.reshape(-1).tolist()


@PLENTY
@given(tensors_of_any_type())
def test_unpacking_undoes_packing(array: np.ndarray[Any, Any]) -> None:
    kind = np_to_triton_dtype(array.dtype)
    flat = array.reshape(-1).tolist()
    values = [text.decode() for text in flat] if kind == "BYTES" else flat
    assert tensors.unpack("x", kind, tensors.pack(kind, values, "x")) == values


@PLENTY
@given(
    st.sampled_from(["BYTES", "BOOL", "INT8", "UINT64", "FP32", "FP16", "x"]),
    st.lists(
        st.integers(-(2**64), 2**64 - 1) | st.floats() | st.booleans() | st.text() | st.none()
    ),
)
def test_packing_anything_works_or_is_refused(datatype: str, values: list[Any]) -> None:
    with suppress(InvalidArgument):
        packed = tensors.pack(datatype, values, "inputs[0]")
        unpacked = tensors.unpack("x", datatype, packed)
        assert len(unpacked) == len(values)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@PLENTY
@given(
    st.dictionaries(st.sampled_from(["prompt", "ids", "temperature", "triton_x", "é"]), anything),
    st.none() | st.text(min_size=1),
    st.dictionaries(st.text(max_size=5), anything, max_size=3),
)
def test_generating_from_anything_works_or_is_refused(
    fields: dict[str, Any], text: str | None, parameters: dict[str, Any]
) -> None:
    document = {**fields, "text_input": text, "parameters": parameters}
    body = GenerateBody.model_validate(json.loads(json.dumps(document)))
    with suppress(InvalidArgument):
        message = text_tensors.request_message(body, metadata())
        assert len(message.inputs) == len(message.raw_input_contents)


def metadata() -> Any:
    response = service_pb2.ModelMetadataResponse(name="demo")
    response.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    response.inputs.add(name="sampling", datatype="BYTES", shape=[1])
    response.inputs.add(name="ids", datatype="INT64", shape=[-1])
    response.inputs.add(name="grid", datatype="FP32", shape=[-1, -1, 2])
    return response


def test_text_and_parameters_become_prompt_and_sampling() -> None:
    document = {"text_input": "Hi", "parameters": {"temperature": 0}, "stop": ["x"]}
    message = text_tensors.request_message(GenerateBody.model_validate(document), metadata())
    found = {
        tensor.name: raw[4:].decode()
        for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    }
    assert found["prompt"] == "Hi"
    assert json.loads(found["sampling"]) == {"temperature": 0, "stop": ["x"], "max_tokens": 20}
    assert not message.parameters


def test_fields_become_inputs_and_parameters() -> None:
    document = {"grid": [1, 2, 3, 4], "ids": 7, "priority": 3}
    message = text_tensors.request_message(GenerateBody.model_validate(document), metadata())
    assert {t.name: list(t.shape) for t in message.inputs} == {"grid": [1, 2, 2], "ids": [1]}
    assert message.parameters["priority"].int64_param == 3
    with pytest.raises(InvalidArgument, match="do not make a tensor"):
        odd = GenerateBody.model_validate({"grid": [1, 2, 3]})
        text_tensors.request_message(odd, metadata())


def test_details_are_refused_and_twice_is_once_too_often() -> None:
    for document, message in (
        ({"text_input": "x", "parameters": {"details": True}}, "details"),
        ({"text_input": "x", "seed": 1, "parameters": {"seed": 2}}, "given twice"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            text_tensors.request_message(GenerateBody.model_validate(document), metadata())


def test_parts_are_joined() -> None:
    parts = [
        {"text_output": "a", "token_count": 1, "finish_reason": "", "logprobs": "[1]"},
        {"text_output": "b", "token_count": 2, "finish_reason": "stop", "logprobs": "[2,3]"},
    ]
    assert text_tensors.joined(parts) == {
        "text_output": "ab",
        "token_count": 3,
        "finish_reason": "stop",
        "logprobs": "[1,2,3]",
    }
    assert text_tensors.joined([{"total": 1}]) == {"total": 1}
    with pytest.raises(FailedPrecondition, match="generate_stream"):
        text_tensors.joined([{"total": 1}, {"total": 2}])


def test_bytes_that_are_no_text_need_binary() -> None:
    with pytest.raises(FailedPrecondition, match="binary_data"):
        tensors.unpack("x", "BYTES", b"\x01\0\0\0\xff")
    with pytest.raises(FailedPrecondition, match="binary_data"):
        tensors.unpack("x", "FP16", b"\0\0")


def test_bytes_beyond_the_inputs_are_refused() -> None:
    header = orjson.dumps({"inputs": []})
    with pytest.raises(InvalidArgument, match="belong to no input"):
        asked(header + b"xyz", len(header))


def test_a_message_as_json_has_numbers_and_words() -> None:
    entry = service_pb2.ModelStatistics(name="demo", last_inference=2**60)
    entry.inference_stats.success.ns = 5
    entry.response_stats["0"].compute_infer.count = 1
    document = tensors.plain(entry)
    assert document["last_inference"] == 2**60
    assert document["inference_stats"]["success"] == {"count": 0, "ns": 5}
    assert document["response_stats"]["0"]["compute_infer"]["count"] == 1
    assert document["batch_stats"] == []
