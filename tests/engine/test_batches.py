"""A batch of the ``openai`` package through the gateway to the engine on real Triton."""

import json
from typing import Any

import pytest
from gateway_mesh import Mesh

from millrace_testkit.servers import wait_until
from tests.engine.served import is_installed

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
ENDPOINT = "/v1/completions"


def test_a_batch_answers_as_online(gateway: Mesh) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "tiny", "prompt": text, "max_tokens": 8, "temperature": 0}
        for text in ("The import statement", "def read(", "class Path", "return None", "for line")
    ]
    lines = [
        {"custom_id": f"line-{n}", "method": "POST", "url": ENDPOINT, "body": body}
        for n, body in enumerate(bodies)
    ]
    client = gateway.openai()
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(made.id).completed_at, 120, "the batch ends")
    batch = client.batches.retrieve(made.id)
    assert batch.output_file_id is not None and batch.error_file_id is None
    told = [json.loads(one) for one in client.files.content(batch.output_file_id).text.splitlines()]
    online = [client.completions.create(**body) for body in bodies]
    texts = [one["response"]["body"]["choices"][0]["text"] for one in told]
    assert texts == [completion.choices[0].text for completion in online]
    tokens = [completion.usage.total_tokens for completion in online if completion.usage]
    assert batch.usage is not None and batch.usage.total_tokens == sum(tokens)
