"""How a search for settings looks: its trials, its scenarios, and what they say."""

from millrace_client import output, text
from millrace_client.api import Json
from millrace_client.output import Columns

_TRIALS: Columns = {
    "trial": lambda t: t["number"],
    "kind": lambda t: t["kind"],
    "instances": lambda t: _setting(t, "instance_count"),
    "batch": lambda t: _setting(t, "max_batch_size"),
    "threads": lambda t: _setting(t, "threads"),
    "cache": lambda t: _setting(t, "cache_gibibytes", " GiB"),
    "single stream p90": lambda t: _milliseconds(t["single_stream_seconds_p90"]),
    "offline": lambda t: _rate(t["offline_tokens_per_second"], "tok/s"),
    "server": lambda t: _rate(t["server_requests_per_second"], "req/s"),
    "first token p99": lambda t: _milliseconds(t["server_first_token_seconds_p99"]),
    "": lambda t: t["reason"] or " ",
}
_SCENARIOS: Columns = {
    "scenario": lambda f: f["scenario"].replace("_", " "),
    "figure": lambda f: f["name"].removeprefix(f"{f['scenario']}_"),
    "present": lambda f: _figure(f, "present"),
    "best candidate": lambda f: _figure(f, "best"),
    "change": lambda f: _change(f),
}


def show_report(document: Json) -> None:
    """A search with its report: the trials, the scenarios, the conclusion."""
    out = output.console()
    if document["trials"]:
        out.print(output.table(document["trials"], _TRIALS))
        out.print()
        out.print(output.table(document["figures"], _SCENARIOS))
        out.print()
    out.print(document["conclusion"], markup=False)
    result = document["result"] or {}
    if policy := result.get("is_better") and result["queue_policy"]:
        out.print(
            f"a queue that fits: --max-queue-size {policy['max_queue_size']} "
            f"--queue-timeout-seconds {policy['default_timeout_seconds']:g}",
            markup=False,
        )


def trial_line(trial: Json) -> str:
    """What came of one look, in one line."""
    rate = _rate(trial["server_requests_per_second"], "req/s in time")
    return f"trial {trial['number']} ({trial['kind']}): {trial['reason'] or rate}"


def progress_line(tuning: Json) -> str:
    """Where a search stands, in one line."""
    progress = tuning["progress"]
    if tuning["status"] != "running":
        return f"{tuning['status']}: {progress['phase']}"
    return f"trial {progress['completed']} of about {progress['total']}: {progress['phase']}"


def traffic_line(source: Json) -> str:
    """What the load is shaped like."""
    if source["source"] == "recent":
        rate = source["requests_per_second"]
        return f"shaped like the last {source['requests']} requests ({rate:.3g}/s)"
    if source["source"] == "given":
        return "shaped as asked"
    return "too little traffic lately: 64 tokens asked, 32 answered"


def _setting(trial: Json, name: str, unit: str = "") -> str:
    value = trial["serving"][name]
    return "default" if value is None else f"{value}{unit}"


def _rate(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3g} {unit}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.3g} ms"


def _figure(figure: Json, side: str) -> str:
    value = figure[side]
    if value is None or figure["unit"] == "seconds":
        return _milliseconds(value)
    return f"{text.number(value, 3)} {figure['unit'].replace('_per_second', '/s')}"


def _change(figure: Json) -> str:
    before, after = figure["present"], figure["best"]
    return f"{after / before - 1:+.1%}" if before and after is not None else "-"
