"""What is wrong with a mesh, and what to do: looked up from outside, one finding a check."""

import asyncio
import math
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import httpx
import nats as nats_client
from nats import errors as nats_errors
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError
from prometheus_client.parser import text_string_to_metric_families

from millrace.topology import REPLAY_STREAM, STREAM
from millrace_client import text
from millrace_client.endpoint import of_home
from millrace_client.errors import NoGateway
from millrace_client.home import Home
from millrace_mesh import nats, orphans, state
from millrace_mesh.layout import SERVICES, Layout
from millrace_mesh.orphans import Orphan
from millrace_mesh.probes import NO_TLS, NotReady, get_json
from millrace_runtime import bus
from millrace_runtime.dead_letters import ANY_TENANT, DeadLetters, Letter

_TIMEOUT_SECONDS = 5.0
_MANY_RESTARTS = 3
_MANY_WAITING = 100
_MOST_COUNTED = 1000
_MOST_ASKED = 20
_LATE_SECONDS = 10.0
_UNPUBLISHED_METRIC = "millrace_outbox_unpublished_facts"
_OLDEST_METRIC = "millrace_outbox_oldest_fact_seconds"
_EXPIRED_METRIC = "millrace_work_expired_leases"
_DURABLE_METRIC = "millrace_database_durable"
_BACKLOG_METRIC = "millrace_outbox_pending_facts"
_CONNECTED_METRIC = "millrace_nats_connected"
_NO_ANSWER = (NotReady, NoGateway, httpx.HTTPError, OSError, nats_errors.Error, sqlite3.Error)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do when it is not good."""

    subject: str
    is_good: bool
    detail: str
    remedy: str = ""


def examine(document: Mapping[str, Any] | None, home: Home) -> list[Finding]:
    """Look at the mesh that ``document`` (its state file) describes."""
    if document is None:
        return [Finding("mesh", False, "no mesh runs here", "millrace up --detach")]
    layout = Layout(home, document["base_port"])
    return asyncio.run(_examine(document, layout))


async def _examine(document: Mapping[str, Any], layout: Layout) -> list[Finding]:
    findings = [process_finding(process) for process in document["processes"]]
    checks: list[Awaitable[list[Finding]]] = [
        _asked("nats fsync", partial(_durability, layout)),
        _asked("streams", partial(_streams, layout)),
        _asked("dead letters", partial(_dead_letters, layout)),
        *(_asked(f"{stage} outbox", partial(_service, layout, stage)) for stage in SERVICES),
        _asked("models", partial(_models, layout)),
        _asked("orphans", partial(_orphans, layout.home)),
    ]
    for found in await asyncio.gather(*checks):
        findings += found
    return findings


async def _asked(subject: str, check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    """A check's findings; that nothing answered is one too."""
    try:
        return await check()
    except _NO_ANSWER as error:
        remedy = "see: millrace status, millrace logs"
        return [Finding(subject, False, str(error) or type(error).__name__, remedy)]


def process_finding(process: Mapping[str, Any]) -> Finding:
    """Whether a process is ready, and stays so."""
    name, log = process["name"], f"millrace logs {process['name']}"
    restarts = f", {process['restarts']} restarts" if process["restarts"] else ""
    if process["phase"] != state.READY:
        return Finding(name, False, f"{process['phase']}{restarts} {process['last_end']}", log)
    if process["restarts"] >= _MANY_RESTARTS:
        detail = f"ready, but started again {process['restarts']} times: {process['last_end']}"
        return Finding(name, False, detail, log)
    return Finding(name, True, f"ready at {process['address']}{restarts}")


async def _durability(layout: Layout) -> list[Finding]:
    document = await get_json(f"{layout.url('nats.monitor')}/jsz?config=true")
    try:
        return [Finding("nats fsync", True, nats.durability(document))]
    except nats.NotDurable as error:
        return [Finding("nats fsync", False, str(error), "millrace down && millrace up --detach")]


async def _streams(layout: Layout) -> list[Finding]:
    url = f"{layout.url('nats.monitor')}/jsz?streams=true&consumers=true&config=true"
    document = await get_json(url)
    return [*stream_findings(document), *config_findings(document)]


def stream_findings(document: Mapping[str, Any]) -> list[Finding]:
    """Whether the history is there, and its consumers keep up."""
    streams = _streams_of(document)
    if STREAM not in streams:
        remedy = "services make it when they start: millrace logs nats"
        return [Finding("stream", False, f"there is no stream {STREAM}", remedy)]
    messages = streams[STREAM]["state"]["messages"]
    findings = [Finding("stream", True, f"{STREAM} holds {messages:,} facts")]
    for name, what in ((STREAM, "facts"), (REPLAY_STREAM, "replayed facts")):
        for consumer in streams.get(name, {}).get("consumer_detail") or ():
            findings += _consumer_findings(consumer, what)
    return findings


def _consumer_findings(consumer: Mapping[str, Any], what: str) -> list[Finding]:
    waiting = consumer["num_pending"] + consumer["num_ack_pending"]
    if not waiting or not consumer.get("config", {}).get("durable_name"):
        return []
    name = consumer["name"]
    detail = f"{waiting:,} {what} wait for {name}"
    is_good = waiting < _MANY_WAITING
    return [Finding("consumer", is_good, detail, "" if is_good else f"millrace logs {name}")]


def config_findings(document: Mapping[str, Any]) -> list[Finding]:
    """Whether the streams that there are keep what they must, as the services make them."""
    streams = _streams_of(document)
    wrong = [
        f"{config.name}: {difference}"
        for config in bus.stream_configs()
        if config.name in streams
        for difference in _differences(config, streams[config.name].get("config") or {})
    ]
    if not wrong:
        return [Finding("stream settings", True, "kept in files, without limits")]
    remedy = "put it right with the nats command: nats stream edit; see libs/runtime's bus.py"
    return [Finding("stream settings", False, "; ".join(wrong), remedy)]


def _differences(expected: StreamConfig, found: Mapping[str, Any]) -> list[str]:
    wanted: dict[str, Any] = {
        "subjects": expected.subjects,
        "storage": _word(expected.storage),
        "retention": _word(expected.retention),
        "max_msgs_per_subject": expected.max_msgs_per_subject,
        # No limit may throw the history away.
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
    }
    if expected.duplicate_window:
        wanted["duplicate_window"] = round(expected.duplicate_window * 1e9)
    return [
        f"{setting} is {found.get(setting)!r}, not {value!r}"
        for setting, value in wanted.items()
        if found.get(setting) != value
    ]


def _word(setting: Enum | None) -> str:
    return str(setting.value) if setting is not None else ""


def _streams_of(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        stream["name"]: stream
        for account in document.get("account_details") or ()
        for stream in account.get("stream_detail") or ()
    }


async def _dead_letters(layout: Layout) -> list[Finding]:
    client = await nats_client.connect(
        layout.nats_url, connect_timeout=2, allow_reconnect=False, error_cb=_unheard
    )
    try:
        letters, more = await DeadLetters(client.jetstream()).page(ANY_TENANT, _MOST_COUNTED)
    except NotFoundError:  # no stream of letters: no letters
        letters, more = [], False
    finally:
        await client.close()
    return [letters_finding(letters, more)]


async def _unheard(_error: Exception) -> None:
    """What is wrong with the connection is raised where it is used, too."""


def letters_finding(letters: Sequence[Letter], more: bool = False) -> Finding:
    """Whether facts lie dead, and why the newest does."""
    if not letters:
        return Finding("dead letters", True, "no fact was refused")
    newest = letters[0]
    count = f"{len(letters):,}{' and more' if more else ''}"
    detail = (
        f"{count} refused; the last by {newest.consumer}: {newest.fact}: "
        f"{newest.error}: {newest.reason}"
    )
    tenants = " or ".join(sorted({letter.tenant for letter in letters}))
    remedy = (
        f"millrace dead-letters list (--tenant {tenants}); once the reason is put right: "
        "millrace dead-letters replay --all"
    )
    return Finding("dead letters", False, detail, remedy)


async def _service(layout: Layout, stage: str) -> list[Finding]:
    async with _http() as http:
        response = await http.get(f"{layout.url(f'{stage}.http')}/metrics")
        response.raise_for_status()
    samples = metrics(response.text)
    return [outbox_finding(stage, samples), work_finding(stage, samples)]


def metrics(exposition: str) -> dict[str, float]:
    """Prometheus samples without labels, by name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if not sample.labels
    }


def outbox_finding(stage: str, samples: Mapping[str, float]) -> Finding:
    """Whether a service's facts get out."""
    subject = f"{stage} outbox"
    backlog = samples.get(_UNPUBLISHED_METRIC) or samples.get(_BACKLOG_METRIC)
    waiting = _waiting(backlog or 0, samples.get(_OLDEST_METRIC, 0.0))
    if samples.get(_CONNECTED_METRIC) == 0:
        return Finding(subject, False, f"cut off from NATS; {waiting}", "millrace logs nats")
    if backlog is None:
        return Finding(subject, True, "connected to NATS; its backlog is not known")
    if backlog and samples.get(_OLDEST_METRIC, math.inf) > _LATE_SECONDS:
        return Finding(subject, False, waiting, f"millrace logs {stage}")
    return Finding(subject, True, waiting)


def _waiting(backlog: float, oldest_seconds: float) -> str:
    if not backlog:
        return "every fact is published"
    age = f", the oldest for {text.duration(oldest_seconds)}" if oldest_seconds else ""
    return f"{backlog:,.0f} facts wait to be published{age}"


def work_finding(stage: str, samples: Mapping[str, float]) -> Finding:
    """Whether a service's commits last, and somebody does its work."""
    subject = f"{stage} work"
    if samples.get(_DURABLE_METRIC) == 0:
        remedy = "SQLite: WAL and synchronous=FULL; PostgreSQL: fsync and synchronous_commit on"
        return Finding(subject, False, "its commits could be lost with the power", remedy)
    expired = samples.get(_EXPIRED_METRIC, 0.0)
    if expired:
        detail = f"{expired:,.0f} leases ended a minute ago or more, and nobody took the work over"
        remedy = f"its workers are busy or hang: millrace logs {stage}; millrace restart {stage}"
        return Finding(subject, False, detail, remedy)
    return Finding(subject, True, "nothing is left lying, commits are durable")


async def _models(layout: Layout) -> list[Finding]:
    endpoint = of_home(layout.home)
    async with _http({"authorization": f"Bearer {endpoint.api_key}"}) as http:
        routed = [each["id"] for each in await _list(http, layout, "models")]
        versions = await _list(http, layout, "versions")
        serving = {each["model"] for each in versions if each["status"] == "serving"}
        asked = routed[:_MOST_ASKED]
        failures = await asyncio.gather(*(_ask(http, layout, model) for model in asked))
    return model_findings(routed, serving, dict(zip(asked, failures, strict=True)))


def model_findings(
    routed: Sequence[str], serving: Collection[str], failures: Mapping[str, str]
) -> list[Finding]:
    """Whether what serves has a route, and each route answers.

    ``failures`` says for each model that was asked why it did not answer; empty if it did.
    """
    missing = sorted(set(serving) - set(routed))
    bad = [(model, "has a serving version and no route") for model in missing]
    bad += [(model, f"does not answer: {why}") for model, why in failures.items() if why]
    remedy = "millrace logs registry; millrace logs triton"
    findings = [Finding("model", False, f"{model} {why}", remedy) for model, why in bad]
    answering = [model for model, why in failures.items() if not why]
    detail = f"answering: {', '.join(answering)}" if answering else "no model is served yet"
    return findings if bad and not answering else [Finding("models", True, detail), *findings]


async def _list(http: httpx.AsyncClient, layout: Layout, noun: str) -> list[dict[str, Any]]:
    response = await http.get(f"{layout.gateway_url}/v1/{noun}", params={"limit": 1000})
    response.raise_for_status()
    items: list[dict[str, Any]] = response.json()["data"]
    return items


async def _ask(http: httpx.AsyncClient, layout: Layout, model: str) -> str:
    """Why a model does not answer with one token; empty if it does."""
    question = {"model": model, "prompt": "a", "max_tokens": 1}
    try:
        answer = await http.post(f"{layout.gateway_url}/v1/completions", json=question)
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return "" if answer.is_success else f"{answer.status_code} {answer.text[:200]}"


async def _orphans(home: Home) -> list[Finding]:
    return [orphans_finding(await asyncio.to_thread(orphans.find, home), home)]


def orphans_finding(found: Collection[Orphan], home: Home) -> Finding:
    """Whether something lies on the disk that belongs to nothing."""
    if not found:
        return Finding("orphans", True, "all that lies on the disk belongs to something")
    remedy = "look at it, then remove it: rm -r; it is older than an hour, and nothing refers to it"
    return Finding("orphans", False, orphans.describe(found, home), remedy)


def _http(headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=_TIMEOUT_SECONDS, trust_env=False, verify=NO_TLS, headers=dict(headers or {})
    )
