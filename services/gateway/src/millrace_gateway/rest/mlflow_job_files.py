"""What the mesh made of a job, among the artifacts of the MLflow run that the job is tracked in.

    millrace/results/<file>              of a fine-tuning job: what was measured, and the trials
    millrace/compressions/<id>/<file>    of each artifact: quality.json, README.md and report.svg

Nothing is copied: each is read where it lies, when it is asked for. Of a sweep each trial is a run;
all of them have its results, and the best alone, whose checkpoints are the job's, its compressions.
"""

import csv
import io
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Response

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace.tuner.v1 import service_pb2 as tuner_pb2
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, no_such
from millrace_gateway.rest.compressions import get_compression_plot
from millrace_gateway.rest.files import get_file_content
from millrace_gateway.rest.mlflow_content import file_entry, file_of, files_of, folder_entry
from millrace_runtime import names
from millrace_runtime.errors import NotFound

FOLDER = "millrace"
"""What its folder is called within a run."""

_REPORT, _CARD, _PLOT = "quality.json", "README.md", "report.svg"
_PAGE = 1000
_TRIAL = re.compile(r"(ftjob-.+)-trial-([0-9]+)")


@dataclass(frozen=True)
class _Work:
    """What a run tracks: a training run, a fine-tuning job, or a trial of one.

    Attributes:
        model: id of the model that its checkpoints belong to.
        results: names of its files at the data service.
        trials: name of the one with a sweep's trials; empty: it is no sweep.
        trial: the number of the trial, 0 outside a sweep.
    """

    name: str
    model: str
    results: tuple[str, ...] = ()
    trials: str = ""
    trial: int = 0


async def exists(caller: Caller, job: str) -> bool:
    """Whether the mesh knows what the run says that it tracks."""
    return await _work(caller, job) is not None


async def listed(caller: Caller, job: str, path: str) -> list[dict[str, Any]]:
    """The files and folders in a folder of ``FOLDER``; their names alone."""
    work = await _work(caller, job)
    if work is None:
        return []
    match path.split("/") if path else []:
        case []:
            has = {
                "compressions": await _has_compressions(caller, work),
                "results": bool(work.results),
            }
            return [folder_entry(name) for name in has if has[name]]
        case ["results"]:
            found = [file async for file in _results(caller, work)]
            return [file_entry(file.filename, file.content.size_bytes) for file in found]
        case ["compressions"]:
            made = [names.last_id(one.name) async for one in _compressions(caller, work)]
            return [folder_entry(id) for id in sorted(made)]
        case ["compressions", id]:
            return await _reports(caller, await _compression(caller, work, id))
    return []


async def file(caller: Caller, job: str, path: str) -> Response:
    """
    Raises:
        NotFound: ``FOLDER`` has no such file.
        Unavailable: it cannot be read now.
    """
    work = await _work(caller, job)
    if work is not None:
        match path.split("/"):
            case ["results", name]:
                async for one in _results(caller, work):
                    if one.filename == name:
                        return await get_file_content(names.last_id(one.name), caller)
            case ["compressions", id, "report.svg"]:
                await _compression(caller, work, id)
                return await get_compression_plot(id, caller)
            case ["compressions", id, "quality.json" | "README.md" as name]:
                return await file_of(caller, (await _compression(caller, work, id)).artifact, name)
    raise no_such("artifact", f"{FOLDER}/{path}")


async def _work(caller: Caller, job: str) -> _Work | None:
    """None: the mesh knows no such job of this tenant's."""
    trial = _TRIAL.fullmatch(job)
    try:
        if job.startswith("run-"):
            return await _training(caller, job)
        if job.startswith("ftjob-"):
            id, number = (trial[1], int(trial[2])) if trial else (job, 0)
            return await _tuning(caller, id, number)
    except NotFound:
        pass
    return None


async def _training(caller: Caller, id: str) -> _Work:
    request = trainer_pb2.GetRunRequest(name=caller.name("runs", id, "training run"))
    run = (await upstream.call(caller.upstream.trainer.GetRun, request)).run
    return _Work(run.name, run.model)


async def _tuning(caller: Caller, id: str, trial: int) -> _Work:
    request = tuner_pb2.GetJobRequest(name=caller.name("jobs", id, "fine-tuning job"))
    job = (await upstream.call(caller.upstream.tuner.GetJob, request)).job
    results = tuple(name for name in (job.result_file, job.trials_file) if name)
    return _Work(job.name, job.tuned_model, results, job.trials_file, trial)


async def _results(caller: Caller, work: _Work) -> AsyncIterator[data_pb2.File]:
    for name in work.results:
        request = data_pb2.GetFileRequest(name=name)
        try:
            yield (await upstream.call(caller.upstream.data.GetFile, request)).file
        except NotFound:  # its user has deleted it
            continue


async def _compressions(caller: Caller, work: _Work) -> AsyncIterator[compressor_pb2.Compression]:
    """Those of its checkpoints that were made and measured, newest first."""
    if not await _has_compressions(caller, work):
        return
    request = compressor_pb2.ListCompressionsRequest(
        parent=caller.parent, page_size=_PAGE, model=work.model
    )
    while True:
        response = await upstream.call(caller.upstream.compressor.ListCompressions, request)
        for compression in response.compressions:
            if _belongs(compression, work):
                yield compression
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


async def _compression(caller: Caller, work: _Work, id: str) -> compressor_pb2.Compression:
    """
    Raises:
        NotFound: the work has no such compression.
    """
    name = caller.name("compressions", id, "compression")
    request = compressor_pb2.GetCompressionRequest(name=name)
    response = await upstream.call(caller.upstream.compressor.GetCompression, request)
    if _belongs(response.compression, work) and await _has_compressions(caller, work):
        return response.compression
    raise no_such("compression", id)


def _belongs(compression: compressor_pb2.Compression, work: _Work) -> bool:
    is_made = bool(compression.artifact.digest)
    return is_made and compression.checkpoint.name.startswith(f"{work.name}/checkpoints/")


async def _has_compressions(caller: Caller, work: _Work) -> bool:
    """Not a trial that was not the best, nor one of a sweep that goes on."""
    return not work.trial or (bool(work.trials) and await _best_trial(caller, work) == work.trial)


async def _best_trial(caller: Caller, work: _Work) -> int:
    """By the table that the tuner has made of the trials; 0: its user has deleted it."""
    request = data_pb2.ReadFileRequest(name=work.trials)
    try:
        chunks = upstream.stream(caller.upstream.data.ReadFile(request))
        text = b"".join([response.chunk async for response in chunks]).decode()
    except NotFound:
        return 0
    best = (row for row in csv.DictReader(io.StringIO(text)) if row["is_best"] == "True")
    return next((int(row["trial"]) for row in best), 0)


async def _reports(caller: Caller, made: compressor_pb2.Compression) -> list[dict[str, Any]]:
    files = await files_of(caller, made.artifact)
    found = [file_entry(name, files[name][1]) for name in (_CARD, _REPORT) if name in files]
    # The plot is drawn when it is asked for: how large it will be is not known.
    return [*found, {"path": _PLOT, "is_dir": False}]
