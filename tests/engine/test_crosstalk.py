"""The real engine keeps the answers of many clients apart, while others leave it."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway_mesh import Mesh

from millrace_testkit.servers import wait_until
from tests.engine.served import ServedEngine, is_installed
from tests.engine.tiny_model import CONTEXT_TOKENS

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
CLIENTS = 24
LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def gateway(engine: ServedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Before the real engine, with a chat template."""
    mesh = Mesh(tmp_path_factory.mktemp("gateway"))
    mesh.start()
    try:
        target = {"endpoints": [engine.address], "chat_template": "{{ messages[-1].content }}\n"}
        mesh.serve_routes([mesh.route("tiny", **target, context_length=CONTEXT_TOKENS)])
        yield mesh
    finally:
        mesh.stop()


def test_each_client_reads_what_it_alone_asked_for(gateway: Mesh) -> None:
    """Each demands a text of its own by a schema; every third leaves midway."""
    draw = random.Random(4)
    texts = ["".join(draw.choices(LETTERS, k=40)) for _ in range(CLIENTS)]
    read = asyncio.run(all_read(gateway, texts))
    for number, (text, found) in enumerate(zip(texts, read, strict=True)):
        if number % 3 == 2:
            assert json.dumps(text).startswith(found)
        else:
            assert found == json.dumps(text)
    client = gateway.http()
    wait_until(
        lambda: "millrace_generations_active 0.0" in client.get("/metrics").text, 10, "all is over"
    )


async def all_read(gateway: Mesh, texts: list[str]) -> list[str]:
    headers = {"authorization": f"Bearer {gateway.member_secret}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=120) as client:
        asked = [read_one(client, number, text) for number, text in enumerate(texts)]
        return await asyncio.gather(*asked)


async def read_one(client: httpx.AsyncClient, number: int, text: str) -> str:
    body = body_for(text, is_streamed=number % 3 != 1)
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == httpx.codes.OK, await response.aread()
        if not body["stream"]:
            document = json.loads(await response.aread())
            return str(document["choices"][0]["message"]["content"])
        found = ""
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
                found += delta.get("content") or ""
            if number % 3 == 2 and len(found) > 10:
                break
        return found


def body_for(text: str, is_streamed: bool) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Say it."}],
        "max_tokens": 200,
        "stream": is_streamed,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "said", "schema": {"enum": [text]}},
        },
    }
