"""What is published says what the model in training said, and a form that does not is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import codec, some_examples, spec
from tuner_builders import tokenizer

from millrace_runtime import parity as comparison
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import adapter, checkpoint, model_card, parity
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.supervised_objective import Material, SupervisedObjective
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Adapter, Hyperparameters

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and datasets

__all__ = ["spec"]


def tuned(spec: Spec) -> Path:
    """The final checkpoint of a run."""
    spec.output_directory.mkdir()
    made = some_examples(20)
    objective = SupervisedObjective(codec(), Material(made[2:], made[:2], "split", 0, 0))
    Run(spec, objective, tokenizer(), Reporter(io.StringIO()), Cancellation()).train()
    return checkpoint.checkpoints(spec.output_directory, spec.digest)[-1].path


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["lora", "none"])
def test_what_is_published_says_what_was_trained(spec: Spec, kind: Any, precision: Any) -> None:
    given = Hyperparameters(1, 8, 1.0, precision=precision)
    changes = {"adapter": Adapter(kind=kind, rank=4, alpha=8), "hyperparameters": given}
    report = comparison.read(tuned(spec.model_copy(update=changes)))
    stages = {stage.stage: stage for stage in report.stages}
    assert set(stages) == ({"merge"} if kind == "none" else {"adapter", "merge"})
    for stage in stages.values():
        assert not stage.mismatch
        assert stage.tokens > 300
        assert stage.maximum_difference is not None
        assert stage.maximum_difference < (1e-3 if precision == "float32" else 0.1)
    names = {probe.name for probe in report.probes}
    assert {"system", "turns", "white_space", "special_tokens", "heldout_1"} <= names
    by_name = {probe.name: probe for probe in report.probes}
    rendered = codec().render(by_name["turns"].messages, (), generation_prompt=True)
    ids = codec().encode([rendered])[0]
    assert list(by_name["turns"].token_ids)[: len(ids)] == ids


def test_a_merge_that_is_not_the_trained_model_publishes_nothing(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commonest fault: the base is served without its adapter."""

    def forget(load: Any, base_model: Path, _: Path, directory: Path) -> None:
        load(base_model).save_pretrained(directory)

    monkeypatch.setattr(adapter, "save_merged", forget)
    with pytest.raises(JobError, match=r"stage 'merge'.*differ by") as caught:
        tuned(spec)
    assert caught.value.reason == "PARITY_FAILED"
    assert not checkpoint.checkpoints(spec.output_directory, spec.digest)


def test_an_adapter_that_was_saved_wrong_publishes_nothing(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = adapter.save_adapter

    def lose(model: Any, directory: Path, spec: Spec) -> None:
        save(model, directory, spec)
        path = directory / "adapter_model.safetensors"
        weights = {k: torch.zeros_like(v) for k, v in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(adapter, "save_adapter", lose)
    with pytest.raises(JobError, match="stage 'adapter'"):
        tuned(spec)


def test_scoring_leaves_the_model_in_training_as_it_was(spec: Spec) -> None:
    model = adapter.load_base(spec.base_checkpoint_path / "model").to(torch.bfloat16).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with parity.exactly(model) as forward:
        assert len(parity.score(forward, [5, 6, 7], torch.device("cpu"))) == 2
    assert model.training
    after = model.state_dict()
    assert all(after[n].dtype == w.dtype and torch.equal(after[n], w) for n, w in before.items())


def test_a_template_that_refuses_a_conversation_is_known_to(tmp_path: Path) -> None:
    strict = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system messages') }}{% endif %}{{ m['content'] }}{% endfor %}"
        "{{ strftime_now('%Y-%m-%d') }}"
    )
    own = type(tokenizer())(tokenizer_object=tokenizer().backend_tokenizer, chat_template=strict)
    made = {probe.name: probe for probe in parity._conversations(own)}
    assert not made["system"].token_ids
    assert made["user"].token_ids
    assert comparison.render(own, made["user"]).endswith("2026-01-01")  # whatever day it is


def test_the_card_says_what_was_done_the_same_each_time(spec: Spec, tmp_path: Path) -> None:
    base_card = spec.base_checkpoint_path / "model/README.md"
    base_card.write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# demo\n")
    made = tuned(spec)
    card = (made / "model/README.md").read_text()
    again = spec.model_copy(update={"output_directory": tmp_path / "again"})
    assert (tuned(again) / "model/README.md").read_text() == card
    front = card.split("---\n")[1]
    assert "license: apache-2.0\n" in front
    assert 'base_model: "demo@1"\n' in front
    assert spec.training_file_sha256 in front
    measured = json.loads((made / "manifest.json").read_text())["metadata"]["valid"]
    assert f"{{type: valid_loss, value: {measured['valid_loss']:.6g}}}" in front
    for said in ("| merge |", "| adapter.rank | 4 |", "Intended use: not stated"):
        assert said in card
    assert spec.base_checkpoint_digest in card


def test_a_license_that_nobody_stated_is_not_invented(tmp_path: Path) -> None:
    assert model_card.inherited_license(tmp_path) == "other"
    (tmp_path / "README.md").write_text("license: mit\n")  # no front matter
    assert model_card.inherited_license(tmp_path) == "other"
