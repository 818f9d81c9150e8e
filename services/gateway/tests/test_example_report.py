from millrace.data.v1 import service_pb2 as pb
from millrace_gateway.rest.files import file_object


def test_a_file_says_what_its_examples_are() -> None:
    file = pb.File(name="tenants/acme/files/file-1", purpose=pb.FILE_PURPOSE_FINE_TUNE)
    file.create_time.GetCurrentTime()
    assert file_object(file).examples is None
    file.report.CopyFrom(
        pb.ExampleReport(format="alpaca", kind="conversation", unused_fields=["topic"])
    )
    shown = file_object(file).examples
    assert shown is not None
    assert (shown.format, shown.kind, shown.unused_fields) == ("alpaca", "conversation", ["topic"])
