"""A search told as it goes on (``service.proto``: TuneServing)."""

from collections.abc import Callable, Iterator

from millrace.registry.v1 import service_pb2 as pb
from millrace_registry.tuning.app import TuningApp
from millrace_registry.tuning.convert import result_to_proto, trial_to_proto
from millrace_registry.tuning.resource import State
from millrace_runtime.errors import Aborted, FailedPrecondition


def watch(
    app: TuningApp, tenant: str, id: str, goes_on: Callable[[], bool]
) -> Iterator[pb.TuneServingResponse]:
    """What is new of a search at each look, until it ends.

    Args:
        goes_on: waits a while; False: nobody listens any longer.

    Raises:
        NotFound
        FailedPrecondition: the search failed.
        Aborted: it was cancelled.
    """
    known, phase = 0, ""
    while True:
        tuning, deployment = app.get(tenant, id)
        for trial in tuning.trials[known:]:
            yield pb.TuneServingResponse(trial=trial_to_proto(trial))
        known = max(known, len(tuning.trials))
        if tuning.result is not None:
            yield pb.TuneServingResponse(result=result_to_proto(tuning.result, deployment))
            return
        if tuning.failure is not None and tuning.state.has_ended:
            is_cancelled = tuning.state == State.CANCELLED
            kind = Aborted if is_cancelled else FailedPrecondition
            raise kind(tuning.failure.message, reason=tuning.failure.reason)
        if tuning.progress.phase != phase:
            phase = tuning.progress.phase
            yield pb.TuneServingResponse(phase=phase)
        if not goes_on():
            return
