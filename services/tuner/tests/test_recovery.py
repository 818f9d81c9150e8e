"""What a compression has pruned learns from its original again."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from tuner_builders import conversations, tokenizer, write_base, write_jsonl
from tuner_parts import Parts

import millrace_compressor.domain as compressor
from millrace.tuner.v1 import service_pb2_grpc
from millrace_compressor.recovery import Student, TunerRecoveries
from millrace_runtime import manifest
from millrace_runtime.channel import open_channel
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.api import TunerServicer
from millrace_tuner.domain import WINDOWS_FILE, Content, JobState
from millrace_tuner.jobs import checkpoint, distillation, supervised, token_windows, validate
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter, Distillation, Hyperparameters, Supervised
from millrace_tuner.recovery import Recovery

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

COMPRESSION = "tenants/acme/compressions/compression-1"
TEACHER = "tenants/acme/runs/run-1/checkpoints/ckpt-1"


def student(parts: Parts) -> Content:
    """What pruning leaves, in the tests' store."""
    path = parts.content.working_path("artifacts/.work-compression-1/student")
    if not path.exists():
        temporary = manifest.temporary_sibling(path)
        np.save(temporary / WINDOWS_FILE, np.zeros((40, 8), np.int32))
        manifest.commit(temporary, path, "student", {})
    made, digest = manifest.read(path)
    return Content(parts.content.publish(path), digest, made.size_bytes)


def asked(parts: Parts, **changes: object) -> dict[str, object]:
    """A wish for a recovery, from contents that the tests' store has."""
    teacher = parts.models.versions["demo"].checkpoint
    wish: dict[str, object] = {
        "training_file": COMPRESSION,
        "method": Distillation(TEACHER),
        "adapter": Adapter(kind="none", rank=0, alpha=0.0, virtual_tokens=0),
        "recovery": Recovery(student(parts), teacher, TEACHER, 40),
    }
    return wish | changes


def test_its_plan_names_both_models_by_content(parts: Parts) -> None:
    job = parts.create("r1", **asked(parts))
    assert job.plan.base.name == job.plan.training_file.name == COMPRESSION
    assert job.plan.companion is not None and job.plan.companion.name == TEACHER
    assert job.tuned_model.startswith("recovery:")
    assert (job.plan.hyperparameters.epochs, job.plan.is_served) == (3, False)
    again = parts.create("r1", **asked(parts))
    assert again == job
    assert parts.app.get("acme", job.id).plan == job.plan  # as it was written and read


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"training_file": "tenants/other/compressions/c"}, "training_file"),
        ({"training_file": "tenants/acme/files/file-train"}, "training_file"),
        ({"method": Supervised()}, "method"),
        ({"validation_file": "tenants/acme/files/file-train"}, "validation_file"),
        ({"recovery": None}, "training_file"),
    ],
)
def test_what_is_no_recovery_is_refused(
    parts: Parts, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parts.create(**asked(parts, **changes))
    assert caught.value.field == field


def test_it_ends_with_its_checkpoint_and_tells_nobody_of_it(parts: Parts) -> None:
    job = parts.create("r1", **asked(parts))
    done, _ = parts.train()
    assert parts.job.specs[-1]["training_file_path"].endswith(f"student/{WINDOWS_FILE}")
    assert (done.id, done.state) == (job.id, JobState.SUCCEEDED)
    assert parts.fact_kinds() == ["job.started", "job.succeeded"]
    assert "the compression that asked for it goes on" in " ".join(parts.told(job.id))


@pytest.fixture
def recoveries(parts: Parts) -> Iterator[TunerRecoveries]:
    """The compressor's side, before a real server with the service's interceptor."""
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
    TunerServicer(parts.app).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield TunerRecoveries(service_pb2_grpc.TunerServiceStub(channel))
    channel.close()
    server.stop(None).wait()


def compression(parts: Parts) -> compressor.Compression:
    base = parts.models.versions["demo"].checkpoint
    content = compressor.Content(base.uri, base.digest, base.size_bytes)
    order = compressor.Order(
        "acme",
        compressor.Checkpoint(TEACHER, "demo", 1, True, content, content),
        compressor.Target.SAFETENSORS_PRUNED,
        compressor.GatePolicy(),
        recipe={"pruning": {"width": 0.5, "recovery": True}},
    )
    return compressor.Compression("compression-1", order, "", parts.clock())


def test_the_compressor_finds_its_job_in_every_state(
    parts: Parts, recoveries: TunerRecoveries
) -> None:
    asking, made = compression(parts), student(parts)
    pruned = Student(compressor.Content(made.uri, made.digest, made.size_bytes), 40)
    assert recoveries.find(asking) is None
    begun = recoveries.start(asking, pruned)
    assert recoveries.start(asking, pruned) == begun == recoveries.find(asking)
    assert (begun.compression, begun.checkpoint, begun.failure) == ("compression-1", None, None)
    assert [found.job for found in recoveries.unfinished()] == [begun.job]
    _, final = parts.train()
    done = recoveries.find(asking)
    assert done is not None and done.checkpoint is not None
    assert done.checkpoint.digest == final.content.digest
    assert not list(recoveries.unfinished())
    recoveries.cancel(done)  # it has ended: nothing happens
    after = recoveries.find(asking)
    assert after is not None and after.failure is None


def test_the_compressor_cancels_its_job(parts: Parts, recoveries: TunerRecoveries) -> None:
    made = student(parts)
    pruned = Student(compressor.Content(made.uri, made.digest, made.size_bytes), 40)
    begun = recoveries.start(compression(parts), pruned)
    parts.create()  # a user's own, which is not touched
    for found in recoveries.unfinished():
        recoveries.cancel(found)
    cancelled = recoveries.find(compression(parts))
    assert cancelled is not None and cancelled.failure is not None
    assert (cancelled.failure.reason, cancelled.job) == ("RECOVERY_FAILED", begun.job)
    states = {job.id: job.state for job in parts.app.page("acme", 10, "")[0]}
    assert sorted(states.values()) == [JobState.CANCELLED, JobState.QUEUED]


def windows_of(texts: list[str], length: int) -> np.ndarray:
    ids = np.array(tokenizer()("\n".join(texts))["input_ids"], np.int32)
    return ids[: len(ids) // length * length].reshape(-1, length)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """A model that has learned, and what is left of it: nothing of its feed-forward networks."""
    folder = tmp_path_factory.mktemp("recovery")
    spec = Spec(
        job="ftjob-1",
        model="recovery:abc",
        base_version="demo@0",
        base_checkpoint_path=folder / "untaught",
        base_checkpoint_digest=write_base(folder / "untaught"),
        training_file_path=folder / "train.jsonl",
        training_file_sha256=write_jsonl(folder / "train.jsonl", conversations(32)),
        output_directory=folder / "teacher",
        hyperparameters=Hyperparameters(6, 8, 1.0, maximum_sequence_tokens=64),
        learning_rate=5e-3,
        adapter=Adapter(kind="none"),
        threads=1,
    )
    spec.output_directory.mkdir()
    supervised.learn(spec, Reporter(io.StringIO()), Cancellation())
    teacher = checkpoint.checkpoints(spec.output_directory, spec.digest)[-1]
    student = folder / "student"
    digest = write_student(teacher.path / "model", student)
    return spec.model_copy(
        update={
            "base_checkpoint_path": student,
            "base_checkpoint_digest": digest,
            "companion_path": teacher.path,
            "companion_digest": teacher.digest,
            "training_file_path": student / WINDOWS_FILE,
            "training_file_sha256": manifest.sha256_file(student / WINDOWS_FILE),
            "method": Distillation(TEACHER),
            "output_directory": folder / "recovered",
            "hyperparameters": replace(spec.hyperparameters, epochs=4),
        }
    )


def write_student(model: Path, target: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    left = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for layer in left.model.layers:
            layer.mlp.down_proj.weight.zero_()
    temporary = manifest.temporary_sibling(target)
    left.save_pretrained(temporary / "model")
    AutoTokenizer.from_pretrained(model).save_pretrained(temporary / "model")
    texts = [message["content"] for row in conversations(64) for message in row["messages"]]
    np.save(temporary / WINDOWS_FILE, windows_of(texts, 32))
    return manifest.commit(temporary, target, "student", {})


def test_the_pruned_model_comes_near_its_original(pruned: Spec) -> None:
    pruned.output_directory.mkdir()
    distillation.learn(pruned, Reporter(io.StringIO()), Cancellation())
    final = checkpoint.checkpoints(pruned.output_directory, pruned.digest)[-1].metadata
    assert final["valid"]["valid_divergence"] < final["base_valid"]["valid_divergence"] / 2
    assert final["valid"]["valid_loss"] < final["base_valid"]["valid_loss"]


def test_validation_counts_the_windows(pruned: Spec) -> None:
    counted = validate.COUNT["distillation"](pruned)
    count, length = np.load(pruned.training_file_path).shape
    assert (counted.training_examples, counted.longest_tokens) == (count, length)
    assert counted.training_tokens == count * length


def test_other_windows_than_were_committed_are_refused(pruned: Spec, tmp_path: Path) -> None:
    path = tmp_path / WINDOWS_FILE
    np.save(path, np.zeros(3))
    changed = pruned.model_copy(update={"training_file_path": path})
    with pytest.raises(JobError, match="is not what it was"):
        token_windows.read(changed)
    own = {"training_file_sha256": manifest.sha256_file(path)}
    with pytest.raises(JobError, match="float64 of shape"):
        token_windows.read(changed.model_copy(update=own))
    path.unlink()
    with pytest.raises(JobError, match="compress again"):
        token_windows.read(changed)
