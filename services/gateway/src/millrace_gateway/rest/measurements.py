"""What was measured of an artifact, original beside artifact."""

from typing import Annotated

from pydantic import BaseModel, Field

from millrace.compressor.v1 import service_pb2 as pb
from millrace_gateway.rest.recipes import Recipe, recipe
from millrace_gateway.rest.shapes import enum_word, identifier
from millrace_gateway.rest.tasks import METRIC

_OF_LOADS = (
    ("speed", "tokens/second", "tokens_per_second"),
    ("first token", "seconds", "first_token_seconds"),
    ("each token", "seconds", "token_seconds"),
)


class ParityStage(BaseModel):
    """One comparison of log-probabilities, in nats. ``mismatch`` is null when all is well."""

    stage: str
    tokens: int
    mean_difference: float | None
    maximum_difference: float | None
    mean_limit: float
    maximum_limit: float
    mismatch: str | None


class Parity(BaseModel):
    """Whether every form of a tuned model says what the model in training said."""

    probes: int
    stages: list[ParityStage]


class Load(BaseModel):
    """Speed with some streams at the same time; the seconds are medians."""

    streams: int
    tokens_per_second: float
    first_token_seconds: float
    token_seconds: float


class CalibrationComparison(BaseModel):
    """The same artifact, calibrated on the other source."""

    source: str
    digest: str
    artifact_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None


class CalibrationRecord(BaseModel):
    """What an artifact was calibrated on. ``digest``: of the windows' token ids."""

    source: str
    seed: int
    windows: int
    window_tokens: int
    digest: str
    excluded_windows: int
    note: str | None
    other: CalibrationComparison | None


class Trial(BaseModel):
    """One candidate of a search. Those that were not to be shipped are measured on fewer tokens."""

    target: str
    recipe: Recipe
    layers_in_8_bits: int
    evaluated_tokens: int
    size_bytes: int | None
    perplexity_increase: float | None
    kl_divergence: float | None
    top1_agreement: float | None
    latency_seconds: float | None
    broken: Annotated[
        list[str], Field(description="Of the gate: quality, size, latency. None: it passes.")
    ]
    error: Annotated[str | None, Field(description="Why nothing could be made.")]
    chosen: bool
    task_score: Annotated[
        float | None, Field(description="Of its answers, where the gate judges them.")
    ] = None


class Search(BaseModel):
    """How an artifact was chosen among candidates; ``unmet``: where nothing passes, why not."""

    hardware: str
    trials: list[Trial]
    reason: str
    unmet: list[str]


class TaskMeasurement(BaseModel):
    """How the rows of a task were answered; the scores are means, 0 to 1."""

    metric: str
    original_score: float | None
    artifact_score: float | None
    rows: int
    same_answers: Annotated[
        float | None, Field(description="Share of rows with the same answer, right or wrong.")
    ]
    skipped_rows: Annotated[
        int, Field(description="Left out: no answer in text, or too long for the model's context.")
    ]
    max_answer_tokens: int
    seed: int
    digest: str
    file: str | None


class MeasurementsObject(BaseModel):
    """Measured on the same held-out windows; null where not measured."""

    original_perplexity: float | None = None
    artifact_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    original_size_bytes: int | None = None
    artifact_size_bytes: int | None = None
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    token_seconds: float | None = None
    peak_memory_bytes: int | None = None
    evaluated_tokens: int | None = None
    parity: Parity | None = None
    original_loads: list[Load] = []
    artifact_loads: list[Load] = []
    weight_shares: dict[str, float] = {}
    original_memory_bytes: int | None = None
    artifact_memory_bytes: int | None = None
    original_load_seconds: float | None = None
    calibration: CalibrationRecord | None = None
    search: Search | None = None
    task: TaskMeasurement | None = None


class Row(BaseModel):
    """One measurement, original beside artifact; null where not measured."""

    name: str
    unit: str
    original: float | None
    artifact: float | None


def measurements(message: pb.Measurements) -> MeasurementsObject:
    """Those that were measured."""
    measured = {field.name: value for field, value in message.ListFields()}
    for name in ("original_loads", "artifact_loads"):
        measured[name] = [_load(load) for load in measured.get(name, ())]
    measured["weight_shares"] = dict(message.weight_shares)
    if message.HasField("parity"):
        stages = [_stage(stage) for stage in message.parity.stages]
        measured["parity"] = Parity(probes=message.parity.probes, stages=stages)
    if message.HasField("calibration"):
        measured["calibration"] = _calibration(message.calibration)
    if message.HasField("search"):
        measured["search"] = _search(message.search)
    if message.HasField("task"):
        measured["task"] = _task(message.task)
    return MeasurementsObject(**measured)


def rows(measured: MeasurementsObject) -> list[Row]:
    """The measurements as a table, original beside artifact."""
    made: list[tuple[str, str, float | None, float | None]] = [
        ("perplexity", "", measured.original_perplexity, measured.artifact_perplexity),
        ("KL divergence to the original", "nats", None, measured.kl_divergence),
        ("top-1 agreement with the original", "share", None, measured.top1_agreement),
        ("size", "bytes", measured.original_size_bytes, measured.artifact_size_bytes),
        ("load time", "seconds", measured.original_load_seconds, measured.load_seconds),
        ("memory", "bytes", measured.original_memory_bytes, measured.artifact_memory_bytes),
    ]
    if measured.task is not None:
        made += _task_rows(measured.task)
    before = {load.streams: load for load in measured.original_loads}
    after = {load.streams: load for load in measured.artifact_loads}
    for streams in sorted(before | after):
        at = f"{streams} stream{'s' if streams > 1 else ''}"
        for name, unit, field in _OF_LOADS:
            old, new = (getattr(each.get(streams), field, None) for each in (before, after))
            made.append((f"{name}, {at}", unit, old, new))
    return [Row(name=n, unit=u, original=o, artifact=a) for n, u, o, a in made]


def _task_rows(task: TaskMeasurement) -> list[tuple[str, str, float | None, float | None]]:
    name = f"{task.metric.replace('_', ' ')} of {task.rows} answers"
    return [
        (name, "share", task.original_score, task.artifact_score),
        ("same answers as the original", "share", None, task.same_answers),
    ]


def _task(message: pb.TaskMeasurement) -> TaskMeasurement:
    measured = {field.name: value for field, value in message.ListFields()}
    return TaskMeasurement(
        metric=enum_word(pb.TaskMetric, message.metric, METRIC),
        original_score=measured.get("original_score"),
        artifact_score=measured.get("artifact_score"),
        rows=message.rows,
        same_answers=measured.get("same_answers"),
        skipped_rows=message.skipped_rows,
        max_answer_tokens=message.max_answer_tokens,
        seed=message.seed,
        digest=message.digest,
        file=identifier(message.file),
    )


def _calibration(message: pb.CalibrationRecord) -> CalibrationRecord:
    other = None
    if message.HasField("other"):
        measured = {field.name: value for field, value in message.other.ListFields()}
        measured |= {"source": _source(message.other.source), "digest": message.other.digest}
        other = CalibrationComparison(**measured)
    return CalibrationRecord(
        source=_source(message.source),
        seed=message.seed,
        windows=message.windows,
        window_tokens=message.window_tokens,
        digest=message.digest,
        excluded_windows=message.excluded_windows,
        note=message.note or None,
        other=other,
    )


def _search(message: pb.SearchRecord) -> Search:
    return Search(
        hardware=message.hardware,
        trials=[_trial(trial) for trial in message.trials],
        reason=message.reason,
        unmet=list(message.unmet),
    )


def _trial(message: pb.SearchTrial) -> Trial:
    measured = {field.name: value for field, value in message.ListFields()}
    return Trial(
        target=enum_word(pb.Target, message.target, "TARGET_"),
        recipe=recipe(message.recipe),
        layers_in_8_bits=message.layers_in_8_bits,
        evaluated_tokens=message.evaluated_tokens,
        size_bytes=measured.get("size_bytes"),
        perplexity_increase=measured.get("perplexity_increase"),
        kl_divergence=measured.get("kl_divergence"),
        top1_agreement=measured.get("top1_agreement"),
        latency_seconds=measured.get("latency_seconds"),
        broken=list(message.broken),
        error=message.error or None,
        chosen=message.chosen,
        task_score=measured.get("task_score"),
    )


def _source(value: int) -> str:
    return enum_word(pb.CalibrationSource, value, "CALIBRATION_SOURCE_")


def _load(message: pb.LoadMeasurement) -> Load:
    return Load(
        streams=message.streams,
        tokens_per_second=message.tokens_per_second,
        first_token_seconds=message.first_token_seconds,
        token_seconds=message.token_seconds,
    )


def _stage(message: pb.ParityStage) -> ParityStage:
    measured = message.HasField("mean_difference")
    return ParityStage(
        stage=message.stage,
        tokens=message.tokens,
        mean_difference=message.mean_difference if measured else None,
        maximum_difference=message.maximum_difference if measured else None,
        mean_limit=message.mean_limit,
        maximum_limit=message.maximum_limit,
        mismatch=message.mismatch or None,
    )
