"""Whatever is changed between the model in training and the artifact is found, by its stage.

Whoever changes a file here also writes the manifest anew: what finds it is the comparison.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_compress import Store
from transformers import AutoTokenizer, Qwen3ForCausalLM

from millrace_compressor import gate
from millrace_compressor.domain import GatePolicy, Measurements, Parity, Verdict
from millrace_compressor.jobs import evaluate, parity
from millrace_compressor.rows import measurements_of
from millrace_runtime import manifest
from millrace_runtime import parity as comparison
from millrace_runtime.parity import ARTIFACT, LIMITS, TRAINER, Probe, Report, Stage

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    "{# spare #}"
)
QUESTION = [{"role": "user", "content": "Grüße: what is a mill?"}]


class Tuned(Store):
    """A store whose checkpoint has a chat template, weights with something to say, and probes."""

    def _save_model(self, config: Any, fast: Any) -> Callable[[Path], None]:
        def save(path: Path) -> None:
            fast.chat_template = TEMPLATE
            model = Qwen3ForCausalLM(config)
            model.model.embed_tokens.weight.data *= 10
            model.save_pretrained(path / "model")
            fast.save_pretrained(path / "model")
            (path / "model/README.md").write_text("# a card\n")
            report(path / "model").write(path)

        return save


def report(model: Path) -> Report:
    """What a tuning job would have written."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = comparison.render(tokenizer, Probe("user", QUESTION))
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = prompt + tokenizer("It turns.", add_special_tokens=False)["input_ids"]
    digest = manifest.sha256_bytes(text.encode())
    probe = Probe("user", QUESTION, (), digest, ids, len(prompt))
    scored = probe.scored(TRAINER, parity._score(evaluate.Original(model), probe))
    stage = comparison.compare(
        "merge", [scored.scores[TRAINER]], [scored.scores[TRAINER]], LIMITS["float32"]
    )
    files = {p.name: manifest.sha256_file(p) for p in model.iterdir() if p.name != "README.md"}
    return Report(files, [scored], [stage])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return Tuned(tmp_path_factory.mktemp("tuned"))


def compressed(
    tuned: Tuned, folder: Path, change: Callable[[Path], None], target: str = "safetensors"
) -> tuple[Verdict, Path]:
    """What the gate says of an artifact of a checkpoint that was changed, manifest and all."""
    temporary = manifest.temporary_sibling(folder / "checkpoint")
    shutil.copytree(tuned.folder / "checkpoint", temporary, dirs_exist_ok=True)
    (temporary / manifest.MANIFEST_NAME).unlink()
    change(temporary)
    digest = manifest.commit(temporary, folder / "checkpoint", "checkpoint", {})
    spec = tuned.spec(
        target,
        checkpoint_path=folder / "checkpoint",
        checkpoint_digest=digest,
        artifact_path=folder / "artifact",
        working_directory=folder / "work",
    )
    result = tuned.run(spec)
    measured = measurements_of(result["measurements"])
    return gate.decide(measured, GatePolicy()), Path(result["artifact_path"])


def keep(_: Path) -> None:
    """Changes nothing."""


def change_byte(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert len(old) == len(new) == 1 or content.count(old) == 1
    path.write_bytes(content.replace(old, new, 1))


def refresh_digests(checkpoint: Path) -> None:
    """As by someone who also hides the change from the report's own digests."""
    found = comparison.read(checkpoint)
    files = {name: manifest.sha256_file(checkpoint / "model" / name) for name in found.files}
    replace(found, files=files).write(checkpoint)


@pytest.mark.parametrize("target", ["safetensors", "openvino-int8"])
def test_what_was_trained_passes_with_its_report_and_card(
    tuned: Tuned, tmp_path: Path, target: str
) -> None:
    verdict, artifact = compressed(tuned, tmp_path, keep, target)
    assert verdict.passed, verdict.reasons
    made = comparison.read(artifact)
    last = "export" if target == "safetensors" else "quantisation"
    assert [stage.stage for stage in made.stages] == ["merge", "template", last]
    assert set(made.probes[0].scores) == {TRAINER, ARTIFACT}
    assert (artifact / "README.md").read_text() == "# a card\n"
    if target == "safetensors":
        assert made.stages[-1].maximum_difference == 0
    else:
        difference = made.stages[-1].mean_difference
        assert difference is not None and 0 < difference < LIMITS["int8"].mean


def test_one_byte_of_the_template_is_found(tuned: Tuned, tmp_path: Path) -> None:
    def change(checkpoint: Path) -> None:
        change_byte(checkpoint / "model/chat_template.jinja", b"'\\n' +", b"'\\t' +")
        refresh_digests(checkpoint)

    verdict, _ = compressed(tuned, tmp_path, change)
    assert not verdict.passed
    assert "'template': the probe 'user' becomes other token ids" in verdict.reasons[0]


def test_even_one_that_no_probe_renders(tuned: Tuned, tmp_path: Path) -> None:
    def change(checkpoint: Path) -> None:
        change_byte(checkpoint / "model/chat_template.jinja", b"spare", b"spore")

    verdict, _ = compressed(tuned, tmp_path, change)
    assert "'template': chat_template.jinja is not as it was" in verdict.reasons[0]


def test_one_that_breaks_the_template_is_found(tuned: Tuned, tmp_path: Path) -> None:
    def change(checkpoint: Path) -> None:
        change_byte(checkpoint / "model/chat_template.jinja", b"{% endfor", b"{% endfur")
        refresh_digests(checkpoint)

    verdict, _ = compressed(tuned, tmp_path, change)
    assert "'template': the probe 'user' is refused" in verdict.reasons[0]


def test_one_byte_of_the_weights_is_found(tuned: Tuned, tmp_path: Path) -> None:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "model/model.safetensors"
        content = bytearray(path.read_bytes())
        content[-4] ^= 1  # the last bit of a float32
        path.write_bytes(content)

    verdict, _ = compressed(tuned, tmp_path, change)
    assert "'merge': model.safetensors is not as it was" in verdict.reasons[0]


def test_other_weights_are_found_by_what_they_say(tuned: Tuned, tmp_path: Path) -> None:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "model/model.safetensors"
        weights = load_file(path)
        weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
        save_file(weights, path, metadata={"format": "pt"})
        refresh_digests(checkpoint)

    verdict, _ = compressed(tuned, tmp_path, change)
    assert "'merge': log-probabilities of" in verdict.reasons[0]


class Played:
    """Logits as another model's, with ``noise`` added."""

    def __init__(self, model: Any, noise: float) -> None:
        self._model = model
        self._noise = noise

    def logits(self, ids: Any) -> Any:
        torch.manual_seed(1)
        found = torch.from_numpy(self._model.logits(ids))
        return (found + self._noise * torch.randn(found.shape)).numpy()


@pytest.mark.parametrize(
    ("dtype", "exported", "stage"),
    [("int8", 0.0, "quantisation"), ("int8", 3.0, "export"), ("float32", 0.0, "export")],
)
def test_a_bad_artifact_names_the_stage_that_made_it_so(
    tuned: Tuned, tmp_path: Path, dtype: str, exported: float, stage: str
) -> None:
    model = tuned.folder / "checkpoint/model"
    original = evaluate.Original(model)
    converted = tmp_path / "converted"
    shutil.copytree(model, converted)
    found = parity.certify(
        tuned.folder / "checkpoint",
        converted,
        original,
        Played(original, 3.0),
        dtype=dtype,
        reexport=lambda: Played(original, exported),
    )
    assert found is not None
    wrong = [made["stage"] for made in found["stages"] if made["mismatch"]]
    assert wrong == [stage]


def test_a_report_that_was_promised_must_be_there(tuned: Tuned, tmp_path: Path) -> None:
    temporary = manifest.temporary_sibling(tmp_path / "checkpoint")
    manifest.commit(temporary, tmp_path / "checkpoint", "checkpoint", {"parity": {"probes": 9}})
    original = evaluate.Original(tuned.folder / "checkpoint/model")
    found = parity.certify(
        tmp_path / "checkpoint",
        tmp_path,
        original,
        original,
        dtype="float32",
        reexport=lambda: original,
    )
    verdict = gate.decide(measurements_of({"parity": found}), GatePolicy())
    assert verdict.reasons == (
        "parity was not measured at the stage 'merge', and there are probes",
    )
    (tmp_path / "checkpoint" / comparison.REPORT_NAME).write_text("{")
    damaged = parity.certify(
        tmp_path / "checkpoint",
        tmp_path,
        original,
        original,
        dtype="float32",
        reexport=lambda: original,
    )
    assert "cannot be read" in json.dumps(damaged)


def test_the_gate_judges_parity_whatever_the_policy() -> None:
    good = tuple(Stage(name) for name in ("merge", "template", "quantisation"))
    assert gate.decide(Measurements(parity=Parity(3, good)), GatePolicy()).passed
    assert gate.decide(Measurements(), GatePolicy()).passed  # nothing to compare with
    without = Measurements(parity=Parity(3, good[:2]))
    assert "'export'" in gate.decide(without, GatePolicy()).reasons[0]
    broken = Stage("template", mismatch="other token ids")
    verdict = gate.decide(Measurements(parity=Parity(3, (*good, broken))), GatePolicy())
    assert verdict.reasons == ("parity is broken at the stage 'template': other token ids",)
