"""The published description of the facts is valid, complete and up to date."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from millrace.topology import FACTS

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "deploy/checks/node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json"
DOCUMENT = yaml.safe_load((ROOT / "libs/contracts/asyncapi.yaml").read_text())


def test_it_is_a_valid_asyncapi_3_document() -> None:
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(DOCUMENT)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.producer}.{fact.fact}")
def test_every_fact_has_a_channel_and_an_operation_for_each_party(fact) -> None:  # type: ignore[no-untyped-def]
    name = f"{fact.producer}.{fact.fact}"
    assert DOCUMENT["channels"][name]["address"] == fact.subject("{tenant}")
    assert DOCUMENT["operations"][f"{fact.producer} publishes {name}"]["action"] == "send"
    for consumer in fact.consumers:
        assert DOCUMENT["operations"][f"{consumer} consumes {name}"]["action"] == "receive"
