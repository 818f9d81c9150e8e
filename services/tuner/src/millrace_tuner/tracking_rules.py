"""Whether a job's metrics can go where its user wants them. Pure."""

from millrace_runtime.errors import InvalidArgument
from millrace_tuner.domain import Integration


def allowed(wanted: Integration | None, is_tracking: bool) -> Integration | None:
    """
    Args:
        is_tracking: whether the operator has set an MLflow.

    Raises:
        InvalidArgument: there is none.
    """
    if wanted is not None and not is_tracking:
        raise InvalidArgument(
            f"the metrics of {wanted.type!r} go to MLflow, and this mesh has none; its operator "
            "sets MILLRACE_TUNER_MLFLOW_TRACKING_URI",
            reason="TRACKING_NOT_CONFIGURED",
            field="integrations[0].type",
        )
    return wanted
