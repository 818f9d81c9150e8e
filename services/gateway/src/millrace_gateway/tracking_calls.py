"""The calls of MLflow's tracking API, each from its request message to its response message.

Reference: https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from millrace_gateway.tracking import Tracking, meaning, shown
from millrace_runtime.errors import InvalidArgument, NotFound
from millrace_runtime.tracking import tracked_experiment

Answer = dict[str, Any]
_Handler = Callable[[Tracking, str, Any], Any]

_MOST = 1000
_MOST_RUNS = 50_000


def answer(tracking: Tracking, tenant: str, call: str, parameters: Mapping[str, Any]) -> Answer:
    """Do what ``call`` (``runs/search``) asks for; MLflow's own answer to it. Blocks.

    Raises:
        NotFound: what it asks for is not there for the tenant.
        InvalidArgument
        FailedPrecondition: this mesh tracks nothing.
        Unavailable: the store does not answer.
    """
    tracking.open()
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from mlflow.protos import service_pb2
    from mlflow.utils.proto_json_utils import message_to_json, parse_dict

    name, handler = CALLS[call]
    request = getattr(service_pb2, name)()
    try:
        parse_dict(dict(parameters), request)  # type: ignore[no-untyped-call]
    except (ParseError, ValueError, TypeError) as error:
        raise InvalidArgument(f"the request cannot be read: {error}") from error
    try:
        found: Answer = json.loads(message_to_json(handler(tracking, tenant, request)))
    except MlflowException as error:
        raise meaning(error) from error
    return found


def _get_experiment(tracking: Tracking, tenant: str, request: Any) -> Any:
    found = shown(tracking.experiment(tenant, request.experiment_id))
    return request.Response(experiment=found.to_proto())


def _get_experiment_by_name(tracking: Tracking, tenant: str, request: Any) -> Any:
    name = request.experiment_name
    found = tracking.store.get_experiment_by_name(tracked_experiment(tenant, name))
    if found is None:
        raise NotFound(f"Could not find experiment with name '{name}'")
    return request.Response(experiment=shown(found).to_proto())


def _search_experiments(tracking: Tracking, tenant: str, request: Any) -> Any:
    from mlflow.utils.search_utils import SearchExperimentsUtils

    search: Any = SearchExperimentsUtils
    count = _count(request.max_results or _MOST, _MOST)
    found = tracking.experiments(tenant, request.view_type or 1)
    found = search.filter(found, request.filter)
    order = list(request.order_by) or ["creation_time DESC", "experiment_id ASC"]
    found = search.sort(found, order)
    page, token = search.paginate(found, request.page_token or None, count)
    token = token.decode() if isinstance(token, bytes) else token
    response = request.Response(experiments=[one.to_proto() for one in page])
    if token:
        response.next_page_token = token
    return response


def _create_experiment(tracking: Tracking, tenant: str, request: Any) -> Any:
    from mlflow.entities import ExperimentTag

    if request.artifact_location:
        raise InvalidArgument(
            "where artifacts lie is the mesh's business; leave artifact_location out",
            field="artifact_location",
        )
    if not request.name:
        raise InvalidArgument("an experiment needs a name", field="name")
    tags = [ExperimentTag(tag.key, tag.value) for tag in request.tags]
    name = tracked_experiment(tenant, request.name)
    return request.Response(experiment_id=tracking.store.create_experiment(name, None, tags))


def _get_run(tracking: Tracking, tenant: str, request: Any) -> Any:
    return request.Response(run=_run(tracking.run(tenant, _id(request))))


def _search_runs(tracking: Tracking, tenant: str, request: Any) -> Any:
    for id in request.experiment_ids:
        tracking.experiment(tenant, id)
    page = tracking.store.search_runs(
        list(request.experiment_ids),
        request.filter,
        request.run_view_type or 1,
        _count(request.max_results, _MOST_RUNS),
        list(request.order_by),
        request.page_token or None,
    )
    return request.Response(runs=[_run(one) for one in page], next_page_token=page.token or "")


def _create_run(tracking: Tracking, tenant: str, request: Any) -> Any:
    from mlflow.entities import RunTag

    experiment = tracking.experiment(tenant, request.experiment_id)
    tags = [RunTag(tag.key, tag.value) for tag in request.tags]
    made = tracking.store.create_run(
        experiment.experiment_id, request.user_id, request.start_time, tags, request.run_name
    )
    return request.Response(run=_run(made))


def _update_run(tracking: Tracking, tenant: str, request: Any) -> Any:
    run = tracking.run(tenant, _id(request))
    info = tracking.store.update_run_info(
        run.info.run_id,
        request.status if request.HasField("status") else None,
        request.end_time if request.HasField("end_time") else None,
        request.run_name if request.HasField("run_name") else None,
    )
    return request.Response(run_info=_info(info.to_proto()))


def _metric_history(tracking: Tracking, tenant: str, request: Any) -> Any:
    run = tracking.run(tenant, _id(request))
    count = request.max_results if request.HasField("max_results") else None
    found = tracking.store.get_metric_history(
        run.info.run_id, request.metric_key, count, request.page_token or None
    )
    response = request.Response(metrics=[metric.to_proto() for metric in found])
    if found.token:
        response.next_page_token = found.token
    return response


def _log_metric(tracking: Tracking, tenant: str, request: Any) -> Any:
    from mlflow.entities import Metric

    metric = Metric(request.key, request.value, request.timestamp, request.step)
    tracking.store.log_metric(tracking.run(tenant, _id(request)).info.run_id, metric)
    return request.Response()


def _log_parameter(tracking: Tracking, tenant: str, request: Any) -> Any:
    from mlflow.entities import Param

    run = tracking.run(tenant, _id(request))
    tracking.store.log_param(run.info.run_id, Param(request.key, request.value))
    return request.Response()


def _log_batch(tracking: Tracking, tenant: str, request: Any) -> Any:
    from mlflow.entities import Metric, Param, RunTag

    run = tracking.run(tenant, _id(request))
    tracking.store.log_batch(
        run.info.run_id,
        [Metric.from_proto(metric) for metric in request.metrics],
        [Param.from_proto(param) for param in request.params],
        [RunTag.from_proto(tag) for tag in request.tags],
    )
    return request.Response()


def _set_tag(tracking: Tracking, tenant: str, request: Any) -> Any:
    from mlflow.entities import RunTag

    run = tracking.run(tenant, _id(request))
    tracking.store.set_tag(run.info.run_id, RunTag(request.key, request.value))
    return request.Response()


def _search_logged_models(tracking: Tracking, tenant: str, request: Any) -> Any:
    """None: models are in the registry. MLflow's client asks before it lists artifacts."""
    return request.Response()


def _run(run: Any) -> Any:
    message = run.to_proto()
    _info(message.info)
    return message


def _info(info: Any) -> Any:
    """A run's information, with the way to its artifacts through the gateway."""
    info.artifact_uri = artifact_uri(info.run_id)
    return info


def artifact_uri(run_id: str) -> str:
    return f"mlflow-artifacts:/runs/{run_id}"


def _id(request: Any) -> str:
    """Of a run; old clients call it a UUID."""
    return str(request.run_id or getattr(request, "run_uuid", ""))


def _count(wanted: int, most: int) -> int:
    if not 0 < wanted <= most:
        raise InvalidArgument(f"max_results must be from 1 to {most}", field="max_results")
    return wanted


CALLS: Mapping[str, tuple[str, _Handler]] = {
    "experiments/get": ("GetExperiment", _get_experiment),
    "experiments/get-by-name": ("GetExperimentByName", _get_experiment_by_name),
    "experiments/search": ("SearchExperiments", _search_experiments),
    "experiments/create": ("CreateExperiment", _create_experiment),
    "runs/get": ("GetRun", _get_run),
    "runs/search": ("SearchRuns", _search_runs),
    "runs/create": ("CreateRun", _create_run),
    "runs/update": ("UpdateRun", _update_run),
    "runs/log-metric": ("LogMetric", _log_metric),
    "runs/log-parameter": ("LogParam", _log_parameter),
    "runs/log-batch": ("LogBatch", _log_batch),
    "runs/set-tag": ("SetTag", _set_tag),
    "metrics/get-history": ("GetMetricHistory", _metric_history),
    "logged-models/search": ("SearchLoggedModels", _search_logged_models),
}
"""By path: the request's message in MLflow's ``service.proto``, and what answers it."""

READS = frozenset(
    (
        "experiments/get",
        "experiments/get-by-name",
        "experiments/search",
        "runs/get",
        "metrics/get-history",
    )
)
"""What is asked with GET."""
