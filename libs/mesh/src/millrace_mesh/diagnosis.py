"""What is wrong with a mesh, and what to do: looked up from outside, one finding a check."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from millrace.topology import DEAD_LETTER_STREAM, STREAM
from millrace_client.endpoint import of_home
from millrace_client.errors import NoGateway
from millrace_client.home import Home
from millrace_mesh import nats, state
from millrace_mesh.layout import SERVICES, Layout
from millrace_mesh.probes import NO_TLS, NotReady, get_json

_TIMEOUT_SECONDS = 5.0
_MANY_RESTARTS = 3
_BACKLOG_METRIC = "millrace_outbox_pending_facts"
_CONNECTED_METRIC = "millrace_nats_connected"


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
        *(_asked(f"{stage} outbox", partial(_outbox, layout, stage)) for stage in SERVICES),
        _asked("routes", partial(_routes, layout)),
    ]
    for found in await asyncio.gather(*checks):
        findings += found
    return findings


async def _asked(subject: str, check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    """A check's findings; that nothing answered is one too."""
    try:
        return await check()
    except (NotReady, NoGateway, httpx.HTTPError) as error:
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
    url = f"{layout.url('nats.monitor')}/jsz?streams=true&consumers=true"
    return stream_findings(await get_json(url))


def stream_findings(document: Mapping[str, Any]) -> list[Finding]:
    """Whether the history is there, its consumers keep up, and nothing lies dead."""
    streams = {
        stream["name"]: stream
        for account in document.get("account_details") or ()
        for stream in account.get("stream_detail") or ()
    }
    if STREAM not in streams:
        remedy = "services make it when they start: millrace logs nats"
        return [Finding("stream", False, f"there is no stream {STREAM}", remedy)]
    messages = streams[STREAM]["state"]["messages"]
    findings = [Finding("stream", True, f"{STREAM} holds {messages:,} facts")]
    for consumer in streams[STREAM].get("consumer_detail") or ():
        waiting = consumer["num_pending"] + consumer["num_ack_pending"]
        if waiting and consumer.get("config", {}).get("durable_name"):
            name = consumer["name"]
            detail = f"{waiting:,} facts wait for {name}"
            findings.append(Finding("consumer", waiting < 100, detail, f"millrace logs {name}"))
    dead = streams.get(DEAD_LETTER_STREAM, {}).get("state", {}).get("messages", 0)
    if dead:
        remedy = "the reasons are in the logs: grep -r 'dead letter' $MILLRACE_HOME/logs"
        findings.append(Finding("dead letters", False, f"{dead:,} facts were refused", remedy))
    return findings


async def _outbox(layout: Layout, stage: str) -> list[Finding]:
    async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False, verify=NO_TLS) as http:
        response = await http.get(f"{layout.url(f'{stage}.http')}/metrics")
        response.raise_for_status()
    return [outbox_finding(stage, metrics(response.text))]


def metrics(text: str) -> dict[str, float]:
    """Prometheus samples without labels, by name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def outbox_finding(stage: str, samples: Mapping[str, float]) -> Finding:
    """Whether a service's facts get out."""
    subject = f"{stage} outbox"
    if samples.get(_CONNECTED_METRIC) == 0:
        return Finding(subject, False, "cut off from NATS", "millrace logs nats")
    backlog = samples.get(_BACKLOG_METRIC)
    if backlog is None:
        return Finding(subject, True, "connected to NATS; its backlog is not known")
    if backlog:
        detail = f"{backlog:,.0f} facts wait to be published"
        return Finding(subject, False, detail, f"millrace logs {stage}")
    return Finding(subject, True, "every fact is published")


async def _routes(layout: Layout) -> list[Finding]:
    endpoint = of_home(layout.home)
    headers = {"authorization": f"Bearer {endpoint.api_key}"}
    async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False, verify=NO_TLS) as http:
        response = await http.get(f"{layout.gateway_url}/v1/models", headers=headers)
        response.raise_for_status()
    models = [model["id"] for model in response.json()["data"]]
    served = ", ".join(models) or "no model is served yet"
    return [Finding("routes", True, f"loaded by the gateway: {served}")]
