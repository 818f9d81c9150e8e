"""Write what is derived from the topology (``make protos``): the AsyncAPI document and the
event-flow diagram in ARCHITECTURE.md. ``--check`` writes nothing and fails on a difference.

AsyncAPI 3.0: one channel a fact, one ``send`` operation for its producer, one ``receive``
for each consumer; the payload's schema is the JSON form of the protobuf message.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from millrace.topology import FACTS, STREAM, Fact

ROOT = Path(__file__).resolve().parents[2]
ASYNCAPI = ROOT / "libs/contracts/asyncapi.yaml"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
MARKERS = ("<!-- event flow: generated -->", "<!-- end -->")

_JSON_TYPES = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer"},
    # ProtoJSON writes 64-bit integers as strings.
    FieldDescriptor.CPPTYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "string", "format": "uint64"},
}


def message_schema(message: Descriptor) -> dict[str, Any]:
    """JSON Schema of a message's ProtoJSON form, with the field names of the .proto."""
    return {
        "type": "object",
        "properties": {field.name: field_schema(field) for field in message.fields},
    }


def field_schema(field: FieldDescriptor) -> dict[str, Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        schema: dict[str, Any] = {
            "type": "string",
            "enum": [value.name for value in field.enum_type.values],
        }
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        schema = message_schema(field.message_type)
    else:
        schema = dict(_JSON_TYPES[field.cpp_type])
    return {"type": "array", "items": schema} if field.is_repeated else schema


def channel_name(fact: Fact) -> str:
    return f"{fact.producer}.{fact.fact}"


def channel(fact: Fact) -> dict[str, Any]:
    return {
        "address": fact.subject("{tenant}"),
        "parameters": {"tenant": {"description": "whose fact it is"}},
        "messages": {fact.type: {"$ref": f"#/components/messages/{fact.type}"}},
    }


def message(fact: Fact) -> dict[str, Any]:
    """A CloudEvent in structured mode around the fact's data."""
    string = {"type": "string"}
    return {
        "name": fact.type,
        "contentType": "application/cloudevents+json",
        "payload": {
            "type": "object",
            "required": ["specversion", "id", "source", "type", "time", "tenant", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {**string, "description": "unique for ever; also the Nats-Msg-Id"},
                "source": {"const": f"/millrace/{fact.producer}"},
                "type": {"const": fact.type},
                "subject": string,
                "time": {**string, "format": "date-time"},
                "datacontenttype": {"const": "application/json"},
                "tenant": string,
                "traceparent": {**string, "description": "W3C trace context of the cause"},
                "data": message_schema(fact.message.DESCRIPTOR),
            },
        },
    }


def operations(fact: Fact) -> dict[str, Any]:
    target = {"$ref": f"#/channels/{channel_name(fact)}"}
    name = channel_name(fact)
    found = {f"{fact.producer} publishes {name}": {"action": "send", "channel": target}}
    for consumer in fact.consumers:
        found[f"{consumer} consumes {name}"] = {"action": "receive", "channel": target}
    return found


def asyncapi() -> str:
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Millrace lifecycle facts",
            "version": "1.0.0",
            "description": (
                f"Every fact of a model's life, on the JetStream stream {STREAM}. "
                "Generated from libs/contracts/src/millrace/topology.py."
            ),
        },
        "defaultContentType": "application/cloudevents+json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": {channel_name(fact): channel(fact) for fact in FACTS},
        "operations": {key: value for fact in FACTS for key, value in operations(fact).items()},
        "components": {"messages": {fact.type: message(fact) for fact in FACTS}},
    }
    return yaml.safe_dump(document, sort_keys=False, width=100)


def diagram() -> str:
    """Mermaid: an arrow a fact, from producer to consumer."""
    lines = ["```mermaid", "flowchart LR"]
    hops: dict[tuple[str, str], list[str]] = {}
    for fact in FACTS:
        for consumer in fact.consumers:
            hops.setdefault((fact.producer, consumer), []).append(fact.fact)
    for (producer, consumer), facts in hops.items():
        lines.append(f'    {producer} -- "{"<br/>".join(facts)}" --> {consumer}')
    lines.append('    registry -. "routes (gRPC watch)" .-> gateway')
    lines.append("```")
    return "\n".join(lines)


def architecture(text: str) -> str:
    start, end = (text.index(marker) for marker in MARKERS)
    return f"{text[:start]}{MARKERS[0]}\n{diagram()}\n{text[end:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    wanted = {ASYNCAPI: asyncapi(), ARCHITECTURE: architecture(ARCHITECTURE.read_text())}
    for path, text in wanted.items():
        if path.exists() and path.read_text() == text:
            continue
        if options.check:
            sys.exit(f"{path.name} differs from the topology; run `make protos`")
        path.write_text(text)
        print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
