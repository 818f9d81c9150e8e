from millrace_client.sse import ServerSentEvent, parse


def test_events_are_told_apart_by_blank_lines():
    lines = ["id: 1", "event: a", "data: x", "", ": comment", "", "data:y", "data: z", ""]
    assert list(parse(lines)) == [
        ServerSentEvent("x", "a", "1"),
        ServerSentEvent("y\nz", "message", "1"),
    ]


def test_what_is_not_ended_is_not_given():
    assert list(parse(["data: half"])) == []


def test_data_keeps_its_colons():
    assert list(parse(['data: {"a": "b: c"}', ""])) == [ServerSentEvent('{"a": "b: c"}')]
