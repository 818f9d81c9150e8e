"""The unmodified ``tritonclient``, HTTP and gRPC, through the gateway to a real Triton."""

import asyncio
import json
import queue
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio_client
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio_client
from gateway_mesh import Mesh
from real_triton import RealTriton, is_installed
from tritonclient.utils import InferenceServerException

from millrace_testkit.servers import wait_until

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
]

NUMBERS = np.array([1.5, 2.5, -1.0], dtype=np.float32)
TEXTS = np.array(["ä".encode(), b"", b"\xff\x00"], dtype=np.object_)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    server = RealTriton(tmp_path_factory.mktemp("triton"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def served(mesh: Mesh, triton: RealTriton) -> Mesh:
    """A gateway that routes to the real Triton; ``sums`` has a canary with a quarter."""
    sums = mesh.route("sums", endpoints=[triton.address], version=1, share=0.75)
    sums.targets.add(version=2, share=0.25, endpoints=[triton.address])
    sums.aliases["champion"] = 2
    parrot = mesh.route("parrot", endpoints=[triton.address])
    foreign = mesh.route("hidden", "acme", endpoints=[triton.address])
    mesh.serve_routes([parrot, sums, foreign])
    return mesh


@pytest.fixture
def http(served: Mesh) -> Iterator[http_client.InferenceServerClient]:
    with http_client.InferenceServerClient(f"127.0.0.1:{served.http_port}") as client:
        yield client


@pytest.fixture
def grpc(served: Mesh) -> Iterator[grpc_client.InferenceServerClient]:
    with grpc_client.InferenceServerClient(served.grpc_address) as client:
        yield client


@pytest.fixture
def key(served: Mesh) -> dict[str, str]:
    return {"authorization": f"Bearer {served.member_secret}"}


def sum_inputs(kind: Any, **binary: bool) -> list[Any]:
    numbers = kind.InferInput("numbers", list(NUMBERS.shape), "FP32")
    numbers.set_data_from_numpy(NUMBERS, **binary)
    texts = kind.InferInput("texts", list(TEXTS.shape), "BYTES")
    texts.set_data_from_numpy(TEXTS)
    return [numbers, texts]


def words(prompt: str, **sampling: Any) -> list[Any]:
    inputs = []
    for name, text in (("prompt", prompt), ("sampling", json.dumps(sampling))):
        tensor = grpc_client.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
        inputs.append(tensor)
    return inputs


class Heard:
    """What a stream's callback was given."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._queue.put((result, error))

    def next(self) -> Any:
        """The next result.

        Raises:
            InferenceServerException: it was an error.
        """
        result, error = self._queue.get(timeout=20)
        if error is not None:
            raise error
        return result


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_health_and_descriptions(
    protocol: str, request: pytest.FixtureRequest, key: dict[str, str]
) -> None:
    client: Any = request.getfixturevalue(protocol)
    as_json = {"as_json": True} if protocol == "grpc" else {}
    assert client.is_server_live(headers=key)
    assert client.is_server_ready(headers=key)
    assert client.get_server_metadata(headers=key, **as_json)["name"] == "millrace"
    assert client.is_model_ready("sums", headers=key)
    assert client.is_model_ready("sums", "2", headers=key)
    assert client.is_model_ready("sums@champion", headers=key)
    assert not client.is_model_ready("sums", "3", headers=key)
    assert not client.is_model_ready("hidden", headers=key)
    metadata = client.get_model_metadata("sums", headers=key, **as_json)
    assert (metadata["name"], metadata["versions"]) == ("sums", ["1", "2"])
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["numbers", "texts"]
    config = client.get_model_config("parrot", headers=key, **as_json)
    config = config.get("config", config)
    assert config["name"] == "parrot"
    assert config["model_transaction_policy"]["decoupled"] is True
    assert [tensor["data_type"] for tensor in config["input"]] == ["TYPE_STRING"] * 2
    statistics = client.get_inference_statistics("sums", headers=key, **as_json)["model_stats"]
    assert [(entry["name"], entry["version"]) for entry in statistics] == [
        ("sums", "1"),
        ("sums", "2"),
    ]
    everything = client.get_inference_statistics(headers=key, **as_json)["model_stats"]
    assert sorted({entry["name"] for entry in everything}) == ["parrot", "sums"]


@pytest.mark.parametrize("is_binary", [True, False])
def test_http_infer(
    http: http_client.InferenceServerClient, key: dict[str, str], is_binary: bool
) -> None:
    outputs = [
        http_client.InferRequestedOutput("echo"),
        http_client.InferRequestedOutput("total", binary_data=is_binary),
    ]
    result = http.infer(
        "sums",
        sum_inputs(http_client, binary_data=is_binary),
        "2",
        outputs,
        request_id="mine",
        headers=key,
    )
    assert result.get_response()["model_name"] == "sums"
    assert result.get_response()["model_version"] == "2"
    assert result.get_response()["id"] == "mine"
    assert result.as_numpy("total").tolist() == [3.0]
    assert result.as_numpy("echo").tolist() == TEXTS.tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_http_compressed(
    http: http_client.InferenceServerClient, key: dict[str, str], algorithm: str
) -> None:
    result = http.infer(
        "sums@champion",
        sum_inputs(http_client),
        headers=key,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert result.as_numpy("total").tolist() == [3.0]
    assert result.get_response()["model_version"] == "2"


def test_http_infer_without_a_version_follows_the_shares(
    served: Mesh, http: http_client.InferenceServerClient, key: dict[str, str]
) -> None:
    inputs = sum_inputs(http_client)[:1]
    versions = [
        http.infer("sums", inputs, headers=key).get_response()["model_version"] for _ in range(60)
    ]
    assert set(versions) == {"1", "2"}
    assert versions.count("1") > versions.count("2")
    wait_until(lambda: reported(served, "sums", 2)[0] >= versions.count("2"), 10, "the report")
    assert reported(served, "sums", 2)[1] == 0


def reported(mesh: Mesh, model: str, version: int) -> tuple[int, int]:
    """Requests and failures of a version, as the registry was told last."""
    if not mesh.registry.reports:
        return 0, 0
    return next(
        (
            (answers.requests, answers.failures)
            for answers in mesh.registry.reports[-1].answers
            if (answers.model, answers.version) == (model, version)
        ),
        (0, 0),
    )


def test_grpc_infer(grpc: grpc_client.InferenceServerClient, key: dict[str, str]) -> None:
    result = grpc.infer(
        "sums", sum_inputs(grpc_client), "1", request_id="mine", headers=key, client_timeout=20
    )
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("sums", "1", "mine")
    assert result.as_numpy("total").tolist() == [3.0]
    assert result.as_numpy("echo").tolist() == TEXTS.tolist()


def test_aio_clients(served: Mesh, key: dict[str, str]) -> None:
    async def ask() -> None:
        http = http_aio_client.InferenceServerClient(f"127.0.0.1:{served.http_port}")
        grpc = grpc_aio_client.InferenceServerClient(served.grpc_address)
        async with http, grpc:
            # The client puts headers of its own beside those that it is given.
            over_http = await http.infer("sums", sum_inputs(http_client), headers=dict(key))
            over_grpc = await grpc.infer("sums", sum_inputs(grpc_client), headers=key)
            assert over_http.as_numpy("total").tolist() == [3.0]
            assert over_grpc.as_numpy("total").tolist() == [3.0]

            async def requests() -> Any:
                yield {"model_name": "parrot", "inputs": words("hello you"), "request_id": "a"}

            stream = grpc.stream_infer(requests(), headers=key)
            said = [result.as_numpy("text")[0] async for result, error in stream if not error]
            assert said == [b"hello", b"you"]

    asyncio.run(ask())


def test_a_stream_answers_each_request(
    grpc: grpc_client.InferenceServerClient, key: dict[str, str]
) -> None:
    heard = Heard()
    grpc.start_stream(heard, headers=key)
    for number in range(5):
        prompt = " ".join(f"{number}.{word}" for word in range(4))
        grpc.async_stream_infer(
            "parrot", words(prompt), request_id=str(number), enable_empty_final_response=True
        )
    said: dict[str, list[str]] = {str(number): [] for number in range(5)}
    ended = 0
    while ended < 5:
        response = heard.next().get_response()
        assert (response.model_name, response.model_version) == ("parrot", "1")
        if response.parameters["triton_final_response"].bool_param:
            ended += 1
        if response.outputs:
            said[response.id].append(response.raw_output_contents[0][4:].decode())
    assert said == {str(n): [f"{n}.{word}" for word in range(4)] for n in range(5)}
    # Models that answer at once may be asked over the same stream.
    grpc.async_stream_infer("sums", sum_inputs(grpc_client))
    assert heard.next().as_numpy("total").tolist() == [3.0]
    grpc.stop_stream()


def test_a_failure_leaves_the_stream_open(
    served: Mesh, grpc: grpc_client.InferenceServerClient, key: dict[str, str]
) -> None:
    heard = Heard()
    grpc.start_stream(heard, headers=key)
    grpc.async_stream_infer("nope", words("x"))
    with pytest.raises(InferenceServerException, match="does not exist or is not served"):
        heard.next()
    grpc.async_stream_infer("parrot", words("x", wings=2))
    with pytest.raises(InferenceServerException, match="unknown sampling parameters: wings"):
        heard.next()
    assert reported(served, "parrot", 1)[1] == 0, "a client's mistake is no failure"
    grpc.async_stream_infer("parrot", words("a b c", fail_after=2))
    said = []
    with pytest.raises(InferenceServerException, match="the parrot flew away"):
        while True:
            said.append(heard.next().as_numpy("text")[0])
    assert said in ([b"a"], [b"a", b"b"]), "Triton's error may overtake what it has not written"
    wait_until(lambda: reported(served, "parrot", 1)[1] == 1, 10, "the failure is reported")
    grpc.async_stream_infer("parrot", words("again"))
    assert heard.next().as_numpy("text")[0] == b"again"
    grpc.stop_stream()


def test_a_stream_may_ask_to_end_with_the_status(
    grpc: grpc_client.InferenceServerClient, key: dict[str, str]
) -> None:
    heard = Heard()
    grpc.start_stream(heard, headers={**key, "triton_grpc_error": "true"})
    grpc.async_stream_infer("parrot", words("x", wings=2))
    with pytest.raises(InferenceServerException) as caught:
        heard.next()
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_leaving_a_stream_stops_the_engine(
    triton: RealTriton, grpc: grpc_client.InferenceServerClient, key: dict[str, str]
) -> None:
    heard = Heard()
    grpc.start_stream(heard, headers=key)
    grpc.async_stream_infer("parrot", words("x", for_ever=True))
    heard.next()
    assert not triton.was_cancelled()
    grpc.stop_stream(cancel_requests=True)
    wait_until(triton.was_cancelled, 10, "the engine is told")


def test_a_deadline_goes_along(
    triton: RealTriton, grpc: grpc_client.InferenceServerClient, key: dict[str, str]
) -> None:
    heard = Heard()
    grpc.start_stream(heard, headers=key, stream_timeout=4)
    grpc.async_stream_infer("parrot", words("x", for_ever=True))
    heard.next()  # the engine has begun: a slow machine could take the whole time before that
    with pytest.raises(InferenceServerException) as caught:
        while True:
            heard.next()
    # The client's own word, or the gateway's, whichever is quicker.
    assert "deadline" in f"{caught.value.status()} {caught.value}".lower()
    wait_until(triton.was_cancelled, 30, "the engine is told")


@pytest.mark.parametrize("method", ["generate", "generate_stream"])
def test_a_rest_clients_deadline_goes_along_too(
    served: Mesh, triton: RealTriton, method: str
) -> None:
    body = {"text_input": "x", "parameters": {"for_ever": True}}
    answer = served.http(**{"grpc-timeout": "4S"}).post(f"/v2/models/parrot/{method}", json=body)
    assert "deadline of the request" in answer.text
    if method == "generate":
        assert answer.status_code == 504
    wait_until(triton.was_cancelled, 30, "the engine is told")


def test_generate(served: Mesh) -> None:
    body = {"id": "7", "text_input": "one two three", "parameters": {"max_tokens": 2}}
    answer = served.http().post("/v2/models/parrot/generate", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "id": "7",
        "model_name": "parrot",
        "model_version": "1",
        "text_output": "onetwo",
        "token_count": 2,
        "finish_reason": "stop",
        "prompt_token_count": 3,
    }
    assert answer.headers["x-millrace-version"] == "parrot@1"
    raw = {"prompt": "one two", "sampling": "{}"}
    answer = served.http().post("/v2/models/parrot/versions/1/generate", json=raw)
    assert answer.json()["text"] == "onetwo"
    answer = served.http().post("/v2/models/sums/generate", json={"numbers": [1, 2.5]})
    assert answer.json()["total"] == 3.5


def test_generate_stream(served: Mesh, triton: RealTriton) -> None:
    url = "/v2/models/parrot/generate_stream"
    answer = served.http().post(url, json={"text_input": "one two"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert [event["text_output"] for event in events] == ["one", "two"]
    assert [event["finish_reason"] for event in events] == ["", "stop"]
    broken = {"text_input": "one two", "parameters": {"fail_after": 1}}
    answer = served.http().post(url, json=broken)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert events[0]["text_output"] == "one"
    assert "the parrot flew away" in events[1]["error"]
    answer = served.http().post(url, json={"text_input": "x", "parameters": {"wings": 2}})
    assert answer.status_code == 400
    assert answer.json() == {"error": "unknown sampling parameters: wings"}
    forever = {"text_input": "one", "parameters": {"for_ever": True}}
    with served.http().stream("POST", url, json=forever) as response:
        assert next(response.iter_lines()).startswith("data: ")
    wait_until(triton.was_cancelled, 10, "the engine is told")


def test_a_decoupled_model_has_no_single_answer(
    http: http_client.InferenceServerClient,
    grpc: grpc_client.InferenceServerClient,
    key: dict[str, str],
) -> None:
    inputs = words("x")
    with pytest.raises(InferenceServerException, match="ModelStreamInfer") as caught:
        grpc.infer("parrot", inputs, headers=key)
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
    over_http = http_client.InferInput("prompt", [1], "BYTES")
    over_http.set_data_from_numpy(np.array([b"x"], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="generate_stream") as caught:
        http.infer("parrot", [over_http, over_http], headers=key)
    assert caught.value.status() == "400"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_refusals(protocol: str, request: pytest.FixtureRequest, key: dict[str, str]) -> None:
    client: Any = request.getfixturevalue(protocol)
    kind: Any = {"http": http_client, "grpc": grpc_client}[protocol]
    inputs = sum_inputs(kind)
    wrong = kind.InferInput("numbers", [1], "INT32")
    wrong.set_data_from_numpy(np.array([1], dtype=np.int32))
    shared = kind.InferInput("numbers", [3], "FP32")
    shared.set_shared_memory("region", 12)
    for model, given, version, headers, message, statuses in (
        ("hidden", inputs, "", key, "'hidden' does not exist", ("404", "NOT_FOUND")),
        ("sums", inputs, "9", key, "no loaded version", ("404", "NOT_FOUND")),
        ("sums@1", inputs, "2", key, "another version", ("400", "INVALID_ARGUMENT")),
        ("sums", inputs, "", {}, "no API key", ("401", "UNAUTHENTICATED")),
        ("sums", [wrong], "", key, "sums", ("400", "INVALID_ARGUMENT")),
        ("sums", [shared], "", key, "shared memory", ("400", "INVALID_ARGUMENT")),
    ):
        with pytest.raises(InferenceServerException, match=message) as caught:
            # The HTTP client leaves the length of this request's JSON in the headers it is given.
            client.infer(model, given, version, headers=dict(headers))
        assert caught.value.status().removeprefix("StatusCode.") in statuses
    with pytest.raises(InferenceServerException, match="leave sequences out"):
        client.infer("sums", inputs, headers=key, sequence_id=5, sequence_start=True)
    for parameter in ("group", "cancel"):  # with which a client could reach another's answers
        with pytest.raises(InferenceServerException, match="the gateway's own use"):
            client.infer("sums", inputs, headers=dict(key), parameters={parameter: "x"})


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_control_is_not_offered(
    protocol: str, request: pytest.FixtureRequest, key: dict[str, str]
) -> None:
    client: Any = request.getfixturevalue(protocol)
    for call in (
        client.get_model_repository_index,
        lambda **given: client.load_model("sums", **given),
        lambda **given: client.unload_model("sums", **given),
        client.get_system_shared_memory_status,
        lambda **given: client.register_system_shared_memory("a", "/a", 8, **given),
        client.unregister_system_shared_memory,
        client.get_cuda_shared_memory_status,
        client.get_trace_settings,
        lambda **given: client.update_trace_settings(settings={"trace_rate": "1"}, **given),
        lambda **given: client.update_log_settings({"log_info": True}, **given),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call(headers=key)
        assert caught.value.status() in ("403", "StatusCode.UNIMPLEMENTED")
        assert "deployments" in str(caught.value)
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() in ("401", "StatusCode.UNAUTHENTICATED")


def test_bad_bodies(served: Mesh) -> None:
    client = served.http()
    url = "/v2/models/sums/infer"
    good: dict[str, Any] = {
        "inputs": [{"name": "numbers", "shape": [2], "datatype": "FP32", "data": [1, 2]}]
    }
    answer = client.post(url, json=good)
    assert answer.json()["outputs"] == [
        {"name": "total", "datatype": "FP32", "shape": [1], "data": [3.0]}
    ]
    for change, message in (
        ({"data": [1]}, "has 1 elements"),
        ({"data": [[1], 2]}, "different depths"),
        ({"data": ["x", 2]}, "no FP32"),
        ({"datatype": "FP16"}, "send it as binary"),
        ({"datatype": "PLUM"}, "is no type"),
        ({"shape": [-2]}, "shape"),
        ({"parameters": {"binary_data_size": 8}}, "'data' as well"),
        ({"colour": 1}, "Unrecognized request argument supplied: inputs[0].colour"),
    ):
        answer = client.post(url, json={"inputs": [{**good["inputs"][0], **change}]})
        assert answer.status_code == 400, answer.text
        assert message in answer.json()["error"]
    for header, message in (("x", "must be a number"), ("0", "raw binary"), ("99999", "up to")):
        headers = {"inference-header-content-length": header}
        answer = client.post(url, json=good, headers=headers)
        assert (answer.status_code, message in answer.json()["error"]) == (400, True)
    answer = client.post(url, content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert client.get("/v2/nothing").json() == {"error": "Unknown request URL: GET /v2/nothing"}
    assert client.get(url).status_code == 405


def test_time_of_the_last_inference_is_a_number(served: Mesh) -> None:
    client = served.http()
    body = {"inputs": [{"name": "numbers", "shape": [1], "datatype": "FP32", "data": [1]}]}
    assert client.post("/v2/models/sums/versions/1/infer", json=body).status_code == 200
    (entry,) = client.get("/v2/models/sums/versions/1/stats").json()["model_stats"]
    assert entry["inference_count"] >= 1
    assert abs(entry["last_inference"] / 1000 - time.time()) < 600
