"""What the data service's answers mean to a run."""

import pytest

from millrace.data.v1 import service_pb2 as pb
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_trainer.domain import Content, Failure
from millrace_trainer.upstream import DataServiceDatasets

NAME = "tenants/acme/datasets/dataset-1"
DIGEST = "sha256:" + "ab" * 32


class FakeData:
    """Answers ``GetDataset`` with one dataset."""

    def __init__(self, state: str, **fields: object) -> None:
        number = lifecycle_pb2.WorkState.Value(f"WORK_STATE_{state}")
        self._dataset = pb.Dataset(name=NAME, state=number, **fields)

    def GetDataset(self, request: pb.GetDatasetRequest) -> pb.GetDatasetResponse:
        assert request.name == NAME
        return pb.GetDatasetResponse(dataset=self._dataset)


CONTENT = lifecycle_pb2.Content(uri="file:///d", digest=DIGEST, size_bytes=9)
FAILURE = lifecycle_pb2.Failure(reason="DATASET_TOO_SMALL", message="one document")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (FakeData("QUEUED"), None),
        (FakeData("RUNNING"), None),
        (FakeData("SUCCEEDED", content=CONTENT), Content("file:///d", DIGEST, 9)),
        (FakeData("FAILED", failure=FAILURE), Failure("DATASET_TOO_SMALL", "one document")),
    ],
)
def test_a_dataset_is_there_or_failed_or_on_its_way(
    data: FakeData, found: Content | Failure | None
) -> None:
    assert DataServiceDatasets(data).find(NAME) == found  # type: ignore[arg-type]


def test_a_cancelled_dataset_will_never_be_ready() -> None:
    found = DataServiceDatasets(FakeData("CANCELLED")).find(NAME)  # type: ignore[arg-type]
    assert isinstance(found, Failure)
    assert found.reason == "CANCELLED"
