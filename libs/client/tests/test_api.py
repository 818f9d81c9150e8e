import httpx
import pytest
from fake_gateway import FakeGateway, error, page, stream

from millrace_client import errors
from millrace_client.api import Millrace
from millrace_client.endpoint import Endpoint

ENDPOINT = Endpoint("http://gateway", "sk-mr-secret")


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def client(gateway: FakeGateway) -> Millrace:
    return Millrace(ENDPOINT, transport=gateway.transport)


def test_every_request_carries_the_key(gateway: FakeGateway, client: Millrace):
    gateway.answer("GET /v1/training/runs/run-1", {"id": "run-1"})
    assert client.runs.get("run-1") == {"id": "run-1"}
    assert gateway.requests[0].headers["authorization"] == "Bearer sk-mr-secret"


def test_a_request_id_goes_in_the_header(gateway: FakeGateway, client: Millrace):
    gateway.answer("POST /v1/datasets", {"id": "dataset-1"})
    client.datasets.create({"source": {}}, request_id="once")
    assert gateway.requests[0].headers["idempotency-key"] == "once"
    assert gateway.body() == {"source": {}}


def test_a_list_is_read_page_after_page(gateway: FakeGateway, client: Millrace):
    gateway.answer(
        "GET /v1/versions",
        page({"id": "demo@3"}, {"id": "demo@2"}, has_more=True),
        page({"id": "demo@1"}),
    )
    found = client.versions.list(model="demo")
    assert [item["id"] for item in found] == ["demo@3", "demo@2", "demo@1"]
    assert gateway.requests[1].url.params["after"] == "demo@2"
    assert gateway.requests[1].url.params["model"] == "demo"


def test_a_limit_is_kept_over_pages(gateway: FakeGateway, client: Millrace):
    gateway.answer("GET /v1/datasets", page({"id": "d2"}, {"id": "d1"}, has_more=True))
    assert len(client.datasets.list(2)) == 2
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthenticated),
        (403, errors.PermissionDenied),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (429, errors.RateLimited),
        (503, errors.ServerError),
        (418, errors.ApiError),
    ],
)
def test_an_error_answer_is_an_error_of_its_kind(
    gateway: FakeGateway, client: Millrace, status: int, kind: type[errors.ApiError]
):
    gateway.answer("GET /v1/keys", error(status, "no", code="reason", param="field"))
    with pytest.raises(kind, match="no") as caught:
        client.keys.list()
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        status,
        "reason",
        "field",
    )


def test_something_else_than_a_gateway_is_said_to_be_so(gateway: FakeGateway, client: Millrace):
    gateway.answer("GET /v1/models", httpx.Response(502, text="<html>proxy</html>"))
    with pytest.raises(errors.ServerError, match="502: <html>proxy"):
        client.models.list()


def test_no_answer_says_what_to_do(client: Millrace):
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with (
        Millrace(ENDPOINT, transport=httpx.MockTransport(refuse)) as nowhere,
        pytest.raises(errors.NoGateway, match="millrace status"),
    ):
        nowhere.models.list()


def test_a_streamed_chat_ends_with_done(gateway: FakeGateway, client: Millrace):
    gateway.answer(
        "POST /v1/chat/completions",
        stream('data: {"choices": [1]}', ": heartbeat", 'data: {"choices": [2]}', "data: [DONE]"),
    )
    chunks = list(client.stream_chat({"model": "demo", "messages": []}))
    assert [chunk["choices"] for chunk in chunks] == [[1], [2]]
    assert gateway.body() == {"model": "demo", "messages": [], "stream": True}


def test_an_error_within_a_stream_is_raised(gateway: FakeGateway, client: Millrace):
    gateway.answer(
        "POST /v1/completions",
        stream('data: {"choices": [1]}', 'data: {"error": {"message": "the engine is gone"}}'),
    )
    with pytest.raises(errors.ServerError, match="the engine is gone"):
        list(client.stream_text({"prompt": "x"}))


def test_an_error_before_a_stream_is_raised(gateway: FakeGateway, client: Millrace):
    gateway.answer("POST /v1/completions", error(404, "no such model"))
    with pytest.raises(errors.NotFound, match="no such model"):
        list(client.stream_text({"prompt": "x"}))


def test_followed_events_go_on_after_the_last_one_seen(gateway: FakeGateway, client: Millrace):
    gateway.answer(
        "GET /v1/events",
        stream('id: fact-1\nevent: data.file.uploaded\ndata: {"id": "fact-1"}'),
        error(503, "restarting"),
        stream('id: fact-2\ndata: {"id": "fact-2"}', 'id: fact-3\ndata: {"id": "fact-3"}'),
    )
    events = client.events(follow=True, filters={"stage": "data"})
    assert [next(events)["id"] for _ in range(3)] == ["fact-1", "fact-2", "fact-3"]
    assert "last-event-id" not in gateway.requests[0].headers
    assert [r.headers["last-event-id"] for r in gateway.requests[1:]] == ["fact-1", "fact-1"]
    assert dict(gateway.requests[2].url.params) == {"stage": "data", "follow": "true"}


def test_events_end_when_they_are_not_followed(gateway: FakeGateway, client: Millrace):
    gateway.answer("GET /v1/events", stream('id: fact-1\ndata: {"id": "fact-1"}'))
    assert [event["id"] for event in client.events(follow=False)] == ["fact-1"]
    assert len(gateway.requests) == 1


def test_events_that_cannot_be_read_are_an_error(gateway: FakeGateway, client: Millrace):
    gateway.answer("GET /v1/events", error(503, "NATS is away"))
    with pytest.raises(errors.ServerError, match="NATS is away"):
        list(client.events(follow=False))
