from collections.abc import Iterator

import pytest
from neighbour_servers import Neighbours

from millrace.compressor.v1 import service_pb2 as compressor
from millrace.data.v1 import service_pb2 as data
from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace.registry.v1 import service_pb2 as registry
from millrace_runtime.channel import open_channel
from millrace_runtime.errors import InvalidArgument, NotFound, Unavailable
from millrace_tuner.domain import BaseVersion, Content, Failure, FileReference
from millrace_tuner.neighbours import DataFiles, ServedModels
from millrace_tuner.serving import SeenCompression, SeenRollout, SeenVersion

DIGEST = "sha256:" + "a" * 64
CONTENT = lifecycle.Content(uri="file:///x", digest=DIGEST, size_bytes=9)
FILE = "tenants/acme/files/file-1"
CHECKPOINT = "tenants/acme/jobs/ftjob-1/checkpoints/ckpt-1"


@pytest.fixture
def neighbours() -> Iterator[Neighbours]:
    running = Neighbours(token="secret")
    yield running
    running.stop()


@pytest.fixture
def files(neighbours: Neighbours) -> Iterator[DataFiles]:
    channel = open_channel(neighbours.address, "secret")
    yield DataFiles(channel)
    channel.close()


@pytest.fixture
def models(neighbours: Neighbours) -> Iterator[ServedModels]:
    channel = open_channel(neighbours.address, "secret")
    yield ServedModels(channel, channel)
    channel.close()


def test_a_training_file_is_found(neighbours: Neighbours, files: DataFiles) -> None:
    neighbours.data.files[FILE] = data.File(
        name=FILE, purpose=data.FILE_PURPOSE_FINE_TUNE, content=CONTENT, example_count=200
    )
    found = files.training_file(FILE, "training_file")
    assert found == FileReference(FILE, Content("file:///x", DIGEST, 9), 200)


def test_a_file_that_cannot_be_learned_from_names_the_field(
    neighbours: Neighbours, files: DataFiles
) -> None:
    neighbours.data.files[FILE] = data.File(name=FILE, purpose=data.FILE_PURPOSE_BATCH)
    for name, reason in ((FILE, "FILE_PURPOSE"), (f"{FILE}0", "FILE_NOT_FOUND")):
        with pytest.raises(InvalidArgument) as caught:
            files.training_file(name, "validation_file")
        assert caught.value.reason == reason
        assert caught.value.field == "validation_file"


def test_results_are_uploaded_under_a_request_id_of_their_content(
    neighbours: Neighbours, files: DataFiles
) -> None:
    content = b"step\n" * 300_000  # more than one chunk
    name = files.add_results("acme", "ftjob-1-metrics.csv", content)
    files.add_results("acme", "ftjob-1-metrics.csv", content)
    files.add_results("acme", "ftjob-1-metrics.csv", b"other")
    (first, received), (again, _), (other, _) = neighbours.data.uploads
    assert name == "tenants/acme/files/file-result-1"
    assert received == content
    assert first.purpose == data.FILE_PURPOSE_FINE_TUNE_RESULTS
    assert first.request_id == again.request_id != other.request_id


def test_a_version_is_resolved_to_its_checkpoint(
    neighbours: Neighbours, models: ServedModels
) -> None:
    name = "tenants/acme/models/demo/versions/7"
    reference = compressor.CheckpointReference(name=CHECKPOINT, model="demo", content=CONTENT)
    neighbours.registry.resolved["demo@champion"] = registry.Version(
        name=name, number=7, state=registry.VERSION_STATE_SERVING, checkpoint=reference
    )
    found = models.resolve("acme", "demo@champion", "base_model")
    assert found == BaseVersion(name, "demo", 7, Content("file:///x", DIGEST, 9))
    with pytest.raises(NotFound):
        models.resolve("acme", "demp", "base_model")


def test_a_quarantined_version_is_no_base(neighbours: Neighbours, models: ServedModels) -> None:
    neighbours.registry.resolved["demo"] = registry.Version(
        state=registry.VERSION_STATE_QUARANTINED, state_reason="a file has changed"
    )
    with pytest.raises(InvalidArgument, match="a file has changed") as caught:
        models.resolve("acme", "demo", "base_model")
    assert caught.value.field == "base_model"


def test_models_are_listed_by_id(neighbours: Neighbours, models: ServedModels) -> None:
    neighbours.registry.models = ["demo", "ft:demo:acme::x"]
    assert models.ids("acme") == ["demo", "ft:demo:acme::x"]


def test_the_scene_is_all_there_is_of_one_model(
    neighbours: Neighbours, models: ServedModels
) -> None:
    model = "ft:demo:acme::x"
    reference = compressor.CheckpointReference(name=CHECKPOINT, model=model)
    neighbours.compressor.compressions = [
        compressor.Compression(
            name="tenants/acme/compressions/compression-1",
            checkpoint=reference,
            state=lifecycle.WORK_STATE_SUCCEEDED,
            verdict=compressor.Verdict(passed=False, reasons=["9 %"]),
        ),
        compressor.Compression(
            name="tenants/acme/compressions/compression-2",
            checkpoint=reference,
            state=lifecycle.WORK_STATE_FAILED,
            failure=lifecycle.Failure(reason="OUT_OF_MEMORY", message="9 GiB"),
        ),
        compressor.Compression(checkpoint=compressor.CheckpointReference(model="other")),
    ]
    neighbours.registry.versions = [
        registry.Version(
            name=f"tenants/acme/models/{model}/versions/1",
            number=1,
            compression="tenants/acme/compressions/compression-1",
            checkpoint=reference,
            state=registry.VERSION_STATE_ROLLING_OUT,
        )
    ]
    neighbours.registry.rollouts = [
        registry.Rollout(
            model=model, to_version=1, state=registry.ROLLOUT_STATE_REVERSED, reason="errors"
        )
    ]
    scene = models.scene("acme", model)
    names = [f"tenants/acme/compressions/compression-{number}" for number in (1, 2)]
    assert list(scene.compressions) == [
        SeenCompression(names[0], CHECKPOINT, "SUCCEEDED", False, ("9 %",), None),
        SeenCompression(
            names[1], CHECKPOINT, "FAILED", False, (), Failure("OUT_OF_MEMORY", "9 GiB")
        ),
    ]
    assert list(scene.versions) == [SeenVersion(1, names[0], CHECKPOINT, "ROLLING_OUT", "")]
    assert list(scene.rollouts) == [SeenRollout(1, "REVERSED", "errors")]


def test_a_neighbour_that_is_away_is_said_to_be() -> None:
    gone = Neighbours()
    gone.stop()
    with open_channel(gone.address, None) as channel, pytest.raises(Unavailable):
        ServedModels(channel, channel).ids("acme")
