"""``millrace webhooks`` over a gateway without a network."""

from pathlib import Path

import pytest
from fake_gateway import FakeGateway, error, page
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.errors import BadRequest
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
PATH = "/v1/webhook_endpoints"
ONE = f"{PATH}/whe-1"
WEBHOOK: dict[str, object] = {
    "id": "whe-1",
    "object": "webhook_endpoint",
    "name": "mine",
    "url": "https://a.example/",
    "event_types": ["batch.*"],
    "enabled": False,
    "disabled_reason": "it answered 410 Gone",
    "created_at": 1_700_000_000,
}
DELIVERY: dict[str, object] = {
    "id": "whd-1",
    "object": "webhook_endpoint.delivery",
    "event_type": "batch.completed",
    "status": "pending",
    "created_at": 1_700_000_000,
    "next_attempt_at": 1_700_000_300,
    "attempts": [
        {"number": 1, "status_code": None, "error": "no answer within 15 s"},
        {"number": 2, "status_code": 503, "error": None},
    ],
}


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


def run(gateway: FakeGateway, tmp_path: Path, *arguments: str) -> Result:
    context = Connection(ENVIRON, Home(tmp_path), gateway.transport)
    return CliRunner().invoke(app, ["webhooks", *arguments], obj=context)


def test_create(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"POST {PATH}", {**WEBHOOK, "signing_secret": "whsec_x"})
    result = run(gateway, tmp_path, "create", "https://a.example/", "-e", "batch.*", "--name", "m")
    assert result.exit_code == 0 and "whsec_x" in result.output and "whe-1" in result.output
    assert gateway.body() == {"name": "m", "url": "https://a.example/", "event_types": ["batch.*"]}
    run(gateway, tmp_path, "create", "https://a.example/")
    assert gateway.body()["event_types"] == ["*"]


def test_a_refused_url(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"POST {PATH}", error(400, "Invalid value for 'url'", param="url"))
    result = run(gateway, tmp_path, "create", "https://10.0.0.1/")
    assert isinstance(result.exception, BadRequest)


def test_list_and_show(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"GET {PATH}", page(WEBHOOK)).answer(f"GET {ONE}", WEBHOOK)
    for command in (("list",), ("show", "whe-1")):
        output = run(gateway, tmp_path, *command).output
        assert "whe-1" in output and "410 Gone" in output


def test_update(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"POST {ONE}", WEBHOOK)
    assert run(gateway, tmp_path, "update", "whe-1", "--enable").exit_code == 0
    assert gateway.body() == {"enabled": True}
    run(gateway, tmp_path, "update", "whe-1", "--event", "*", "--url", "https://b/", "--disable")
    assert gateway.body() == {"url": "https://b/", "event_types": ["*"], "enabled": False}
    assert run(gateway, tmp_path, "update", "whe-1").exit_code == 2


def test_rotate_and_delete(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"POST {ONE}/rotate_secret", {**WEBHOOK, "signing_secret": "whsec_y"})
    assert "whsec_y" in run(gateway, tmp_path, "rotate", "whe-1", "--keep-old").output
    assert gateway.body() == {"keep_old_secret_active_for_24_hours": True}
    gateway.answer(f"DELETE {ONE}", {"id": "whe-1", "deleted": True})
    assert "True" in run(gateway, tmp_path, "delete", "whe-1").output


@pytest.mark.parametrize(("status_code", "exit_code"), [(204, 0), (500, 1)])
def test_test(gateway: FakeGateway, tmp_path: Path, status_code: int, exit_code: int) -> None:
    gateway.answer(f"POST {ONE}/test", {"status_code": status_code, "success": True})
    result = run(gateway, tmp_path, "test", "whe-1", "-e", "batch.failed")
    assert (result.exit_code, gateway.body()) == (exit_code, {"event_type": "batch.failed"})


def test_types(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("GET /v1/webhook_event_types", {"object": "list", "data": ["a.b", "c.d"]})
    assert run(gateway, tmp_path, "types").output == "a.b\nc.d\n"


def test_deliveries(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"GET {ONE}/deliveries", page(DELIVERY))
    output = run(gateway, tmp_path, "deliveries", "whe-1", "--status", "failed").output
    for expected in ("whd-1", "batch.completed", "pending", "2", "503"):
        assert expected in output
    assert gateway.requests[-1].url.params["status"] == "failed"
    gateway.answer(f"GET {ONE}/deliveries/whd-1", DELIVERY)
    assert "no answer within 15 s" in run(gateway, tmp_path, "deliveries", "whe-1", "whd-1").output


def test_redeliver(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"POST {ONE}/deliveries/whd-1/redeliver", DELIVERY)
    assert "whd-1" in run(gateway, tmp_path, "redeliver", "whe-1", "whd-1").output
