"""How long a checkpoint's way took, from the facts and the trace (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from millrace_client.api import Json
from millrace_client.traces import Span


@dataclass(frozen=True)
class Timing:
    """Seconds from the fact ``checkpoint.finished``; ``None`` where it was not seen.

    Attributes:
        compression_started: until the compression's work began.
        settled: until the version got all of the requests.
        first_token: until the version gave somebody a first answer.
    """

    model: str
    step: int
    version: int | None
    compression_started: float | None
    settled: float | None
    first_token: float | None


def of_facts(facts: Sequence[Json], spans: Sequence[Span], model: str) -> list[Timing]:
    """One for each checkpoint of a model, in order of time."""
    versions = {
        fact["data"]["checkpoint"]: int(fact["data"]["number"])
        for fact in _of(facts, "version.registered", model)
    }
    settled = {
        fact["data"]["checkpoint"]: _seconds(fact) for fact in _of(facts, "rollout.settled", model)
    }
    return [
        _timing(fact, versions, settled, spans) for fact in _of(facts, "checkpoint.finished", model)
    ]


def _timing(
    fact: Json, versions: dict[str, int], settled: dict[str, float], spans: Sequence[Span]
) -> Timing:
    saved, checkpoint = _seconds(fact), fact["data"]["checkpoint"]
    model, version = fact["data"]["model"], versions.get(checkpoint)
    started = _first(s.start for s in spans if _compresses(s, checkpoint))
    answered = _first(s.end for s in spans if version and _answers(s, f"{model}@{version}"))
    return Timing(
        model=model,
        step=int(fact["data"]["step"]),
        version=version,
        compression_started=_after(saved, started),
        settled=_after(saved, settled.get(checkpoint)),
        first_token=_after(saved, answered),
    )


def _compresses(span: Span, checkpoint: str) -> bool:
    is_work = span.service == "millrace-compressor" and span.kind == "INTERNAL"
    return is_work and span.attributes.get("millrace.checkpoint") == checkpoint


def _answers(span: Span, version: str) -> bool:
    return span.attributes.get("gen_ai.response.model") == version and not span.error


def _of(facts: Sequence[Json], fact: str, model: str) -> list[Json]:
    return [f for f in facts if f["subject"].endswith(fact) and f["data"].get("model") == model]


def _seconds(fact: Json) -> float:
    return datetime.fromisoformat(fact["time"]).timestamp()


def _first(moments: Iterable[float]) -> float | None:
    return min(moments, default=None)


def _after(beginning: float, moment: float | None) -> float | None:
    return None if moment is None else moment - beginning
