from millrace_mesh import diagnosis

READY = {"name": "data", "phase": "ready", "address": "127.0.0.1:1", "restarts": 0, "last_end": ""}


def stream(name: str, messages: int, *consumers: dict[str, object]) -> dict[str, object]:
    return {"name": name, "state": {"messages": messages}, "consumer_detail": list(consumers)}


def jsz(*streams: dict[str, object]) -> dict[str, object]:
    return {"account_details": [{"stream_detail": list(streams)}]}


def test_a_mesh_that_does_not_run_is_one_finding(tmp_path):
    from millrace_client.home import Home

    (finding,) = diagnosis.examine(None, Home(tmp_path))
    assert (finding.is_good, finding.remedy) == (False, "millrace up --detach")


def test_a_process_that_is_ready_is_good():
    assert diagnosis.process_finding(READY).is_good


def test_a_process_that_ends_again_and_again_is_not():
    finding = diagnosis.process_finding({**READY, "restarts": 5, "last_end": "ended with status 1"})
    assert not finding.is_good
    assert "ended with status 1" in finding.detail
    assert finding.remedy == "millrace logs data"


def test_a_process_that_waits_for_its_next_start_is_not():
    waiting = {**READY, "phase": "waiting", "restarts": 1, "last_end": "was ended by SIGKILL"}
    assert "SIGKILL" in diagnosis.process_finding(waiting).detail


def test_a_stream_that_is_not_there_is_said_so():
    (finding,) = diagnosis.stream_findings(jsz())
    assert not finding.is_good


def test_consumers_that_keep_up_are_not_mentioned():
    durable = {"durable_name": "registry"}
    idle = {"name": "registry", "num_pending": 0, "num_ack_pending": 0, "config": durable}
    late = {"name": "tuner", "num_pending": 150, "num_ack_pending": 1, "config": durable}
    findings = diagnosis.stream_findings(jsz(stream("MILLRACE", 9, idle, late)))
    assert [(f.subject, f.is_good) for f in findings] == [("stream", True), ("consumer", False)]
    assert findings[1].detail == "151 facts wait for tuner"


def test_dead_letters_are_found():
    found = diagnosis.stream_findings(
        jsz(stream("MILLRACE", 9), stream("MILLRACE_DEAD_LETTERS", 2))
    )
    assert [f.subject for f in found if not f.is_good] == ["dead letters"]


METRICS = """
# TYPE millrace_nats_connected gauge
millrace_nats_connected 1.0
# TYPE millrace_outbox_pending_facts gauge
millrace_outbox_pending_facts 3.0
# TYPE millrace_rpc_server_calls_total counter
millrace_rpc_server_calls_total{code="OK"} 9.0
"""


def test_a_backlog_is_read_from_the_metrics():
    finding = diagnosis.outbox_finding("data", diagnosis.metrics(METRICS))
    assert (finding.is_good, finding.detail) == (False, "3 facts wait to be published")


def test_an_empty_outbox_is_good():
    samples = diagnosis.metrics(METRICS.replace("facts 3.0", "facts 0.0"))
    assert diagnosis.outbox_finding("data", samples).is_good


def test_being_cut_off_from_nats_is_told_first():
    samples = diagnosis.metrics(METRICS.replace("connected 1.0", "connected 0.0"))
    assert diagnosis.outbox_finding("data", samples).detail == "cut off from NATS"
