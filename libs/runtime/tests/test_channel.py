"""The README's words about gRPC's retries are those that services live by."""

import json
from pathlib import Path

from millrace_runtime.channel import SERVICE_CONFIG

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_gives_clients_the_same_service_config() -> None:
    (told,) = [line for line in README.read_text().splitlines() if '"retryPolicy"' in line]
    assert json.loads(told.strip("`;")) == json.loads(SERVICE_CONFIG)
