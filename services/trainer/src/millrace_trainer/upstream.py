"""The service that the trainer asks: data."""

from millrace.data.v1 import service_pb2 as data_pb2
from millrace.data.v1 import service_pb2_grpc as data_grpc
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_runtime.channel import call
from millrace_trainer import convert
from millrace_trainer.domain import Content, Failure


class DataServiceDatasets:
    """``app.Datasets`` over gRPC."""

    def __init__(self, data: data_grpc.DataServiceStub) -> None:
        self._data = data

    def find(self, name: str) -> Content | Failure | None:
        dataset = call(self._data.GetDataset, data_pb2.GetDatasetRequest(name=name)).dataset
        if dataset.source.HasField("examples"):
            message = "the dataset holds examples for tuning, not tokens; train on another"
            return Failure("DATASET_OF_EXAMPLES", message)
        if dataset.state == lifecycle_pb2.WORK_STATE_SUCCEEDED:
            return convert.content_from_proto(dataset.content)
        if dataset.state == lifecycle_pb2.WORK_STATE_FAILED:
            return convert.failure_from_proto(dataset.failure)
        if dataset.state == lifecycle_pb2.WORK_STATE_CANCELLED:
            return Failure("CANCELLED", "the dataset was cancelled before it was built")
        return None
