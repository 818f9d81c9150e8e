"""A training that only gets worse ends early, and its final model is the best epoch's."""

from pathlib import Path

import pytest
from test_adapter import base, made_run, spec, stop_at, trained  # noqa: F401  # fixtures

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import checkpoint
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.checkpoint import Committed
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.supervised_objective import SupervisedObjective
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Hyperparameters

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and PEFT

LOSSES = {5: 2.0, 10: 1.0, 15: 1.5, 20: 1.25, 25: 1.1, 30: 0.5}  # by step; five make an epoch
BEST, LAST = 10, 20  # two epochs without a lower loss are enough


@pytest.fixture
def patient(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> Spec:  # noqa: F811
    """Six epochs, whose validation losses are ``LOSSES``."""

    def measure(self: SupervisedObjective, run: Run) -> dict[str, float]:
        step = run.trainer.state.global_step if run.trainer.state else 0
        return {"valid_loss": LOSSES.get(step, 3.0)}

    monkeypatch.setattr(SupervisedObjective, "measure", measure)
    given = Hyperparameters(6, 4, 1.0, early_stopping_patience=2, precision="float32")
    return spec.model_copy(update={"hyperparameters": given})


def _weights(committed: Committed) -> list[str]:
    return [
        manifest.sha256_file(committed.path / name)
        for name in ("adapter/adapter_model.safetensors", "model/model.safetensors")
    ]


def _is_the_best(known: list[Committed]) -> None:
    assert [c.step for c in known] == [5, 10, 15, LAST]
    final = known[-1]
    assert final.metadata["final"]
    assert final.metadata["best_step"] == BEST
    assert final.metadata["valid"] == {"valid_loss": LOSSES[BEST]}
    assert _weights(final) == _weights(known[1])
    assert _weights(known[2]) != _weights(known[1])


def test_the_final_checkpoint_is_the_best_epochs(patient: Spec) -> None:
    trained(patient)
    _is_the_best(checkpoint.checkpoints(patient.output_directory, patient.digest))


@pytest.mark.parametrize("step", [13, 17])
def test_a_resumed_run_stops_where_an_undisturbed_one_does(
    patient: Spec, tmp_path: Path, step: int
) -> None:
    trained(patient)
    moved = patient.model_copy(update={"output_directory": tmp_path / "other"})
    cancellation = Cancellation()
    run = made_run(moved, cancellation)
    stop_at(run, step, cancellation)
    with pytest.raises(JobError, match="stopped on request"):
        run.train()
    trained(moved)
    found = checkpoint.checkpoints(moved.output_directory, moved.digest)
    _is_the_best(found)
    whole = checkpoint.checkpoints(patient.output_directory, patient.digest)
    assert [c.digest for c in found] == [c.digest for c in whole]
