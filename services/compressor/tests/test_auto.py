"""The target ``auto`` on a tiny model: whole jobs that search, measure and ship."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from compressor_threads import in_own_thread
from test_compress import Store

from millrace.compressor.v1.service_pb2 import TARGET_OPENVINO_INT8
from millrace_compressor import convert, gate
from millrace_compressor.domain import GatePolicy
from millrace_compressor.jobs import auto, compress, sensitivity
from millrace_compressor.jobs.compress import Spec
from millrace_compressor.jobs.hardware import Hardware
from millrace_compressor.jobs.search import NEAREST, Candidate, Space
from millrace_compressor.rows import measurements_of
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
PLAIN = Hardware(frozenset({"avx2"}))
FOUR = Candidate("openvino-int4", 32, NEAREST)
SPACE = Space([Candidate("openvino-int8")], [FOUR], [], [])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def two_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same wherever the tests run; ``test_search.py`` has the others."""
    monkeypatch.setattr(auto.hardware, "this_machine", lambda: PLAIN)
    monkeypatch.setattr(auto.search, "space_of", lambda machine, inputs: SPACE)


def spec_of(store: Store, name: str, **gate: float) -> Spec:
    return store.spec(
        "auto",
        gate=gate,
        artifact_path=store.folder / name,
        working_directory=store.folder / f"work-{name}",
        graphs_directory=store.folder / "graphs",
        originals_directory=store.folder / "originals",
    )


def judged(result: dict[str, Any], **limits: float) -> tuple[bool, tuple[str, ...]]:
    policy = GatePolicy(**limits)  # type: ignore[arg-type]
    verdict = gate.decide(measurements_of(result["measurements"]), policy)
    return verdict.passed, verdict.reasons


def test_a_budget_that_8_bits_meet_and_4_do_not(store: Store) -> None:
    limits = {"min_top1_agreement": 0.999, "max_size_ratio": 0.5}
    result = store.run(spec_of(store, "eight", **limits))
    assert judged(result, **limits) == (True, ())
    artifact = Path(result["artifact_path"])
    manifest.verify(artifact, result["artifact_digest"])
    quality = json.loads((artifact / "quality.json").read_text())
    assert quality["target"] == "openvino-int8"
    eight, four = quality["search"]["trials"]
    assert (eight["chosen"], eight["broken"]) == (True, [])
    assert (four["chosen"], four["broken"]) == (False, ["quality"])
    assert eight["evaluated_tokens"] == quality["evaluated_tokens"] == 4 * 127
    assert eight["size_bytes"] == quality["artifact_size_bytes"] > four["size_bytes"]
    assert "only one that passes" in quality["search"]["reason"]
    assert (artifact / "golden.json").exists()
    assert not (store.folder / "work-eight").exists()
    told = [line for line in store.reported if line["kind"] == "progress"]
    assert [line["phase"] for line in told] == ["search"] * (len(told) - 1) + ["commit"]
    assert [line["completed"] for line in told[:-1]] == list(range(1, len(told)))
    assert all(line["completed"] <= line["total"] for line in told)
    assert told[0]["metrics"]["passes"] == 1.0
    measured = measurements_of(result["measurements"])
    assert len(convert._measurements_to_proto(measured).search.trials) == 2
    chosen = convert._chosen(measured)
    assert chosen is not None and chosen.target == TARGET_OPENVINO_INT8


def test_a_size_that_only_few_bits_meet(store: Store) -> None:
    limits = {"max_size_ratio": 0.2, "max_perplexity_increase": 0.5}
    result = store.run(spec_of(store, "four", **limits))
    assert judged(result, **limits) == (True, ())
    quality = json.loads((Path(result["artifact_path"]) / "quality.json").read_text())
    assert quality["target"] == "openvino-int4"
    assert quality["weight_shares"]["int4"] > 0.5
    assert quality["search"]["trials"][0]["broken"] == ["size"]


def test_what_cannot_be_met_is_rejected_with_what_comes_nearest(store: Store) -> None:
    limits = {"max_size_bytes": 1000.0}
    result = store.run(spec_of(store, "none", **limits))
    passed, reasons = judged(result, **limits)
    assert not passed and len(reasons) == 2
    assert "more than 1000" in reasons[0]
    size = result["measurements"]["artifact_size_bytes"]
    assert reasons[1].startswith("nothing tried is small enough: the smallest that keeps the")
    assert reasons[1].endswith(f"with {size} bytes")


@dataclass
class Bench:
    """The work of a compression, counted. It is killed before the conversion of ``dies_at``."""

    dies_at: str = ""
    converted: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)

    def convert(self, spec: Spec) -> Path:
        if spec.target == self.dies_at:
            raise KeyboardInterrupt
        self.converted.append(spec.target)
        return compress._converted(spec)

    def measure(self, spec: Spec, folder: Path) -> dict[str, Any]:
        self.measured.append(spec.target)
        return compress.measure(spec, folder)

    def run(self, spec: Spec, lines: Path) -> auto.Found:
        work = auto.Work(self.convert, self.measure, compress._whole, 128)
        with lines.open("w", encoding="utf-8") as stream:
            return in_own_thread(lambda: auto.run(spec, Reporter(stream), work))


def test_killed_amid_the_search_it_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    spec = spec_of(store, "killed", max_size_ratio=0.2)
    first = Bench(dies_at="openvino-int4")
    with pytest.raises(KeyboardInterrupt):
        first.run(spec, tmp_path / "lines")
    assert first.converted == ["openvino-int8"]
    second = Bench()
    found = second.run(spec, tmp_path / "lines")
    assert set(second.converted) == {"openvino-int4"}, "the other one is known"
    assert second.measured == ["openvino-int4"]
    third = Bench()
    assert third.run(spec, tmp_path / "lines") == found
    assert third.converted == third.measured == []


def test_layers_are_raised_by_their_sensitivity(store: Store, tmp_path: Path) -> None:
    spec = spec_of(store, "mixed")
    work = auto.Work(compress._converted, compress.measure, compress._whole, 128)
    with (tmp_path / "lines").open("w") as stream:
        search = auto._Search(spec, Reporter(stream), work, PLAIN)
    recipe = search._recipe_of(replace(FOUR, raised=3))
    model = store.folder / "checkpoint/model"
    found = sensitivity.sensitivity(model, search._calibration_windows())
    wanted = sorted(found, key=lambda name: -found[name])[:3]
    assert recipe.layer_bits == dict.fromkeys(wanted, 8)
    assert (recipe.group_size, recipe.weight_method) == (32, NEAREST)
    assert search._most_sensitive(3) == wanted, "what is kept says the same"


def test_a_candidate_that_cannot_be_made_is_told_and_the_search_goes_on(
    store: Store, tmp_path: Path
) -> None:
    class Broken(Bench):
        def convert(self, spec: Spec) -> Path:
            if spec.target == "openvino-int8":
                raise JobError("QUANTIZATION_SKIPPED", "it did not happen")
            return super().convert(spec)

    spec = spec_of(store, "broken", max_perplexity_increase=0.5)
    found = Broken().run(spec, tmp_path / "lines")
    assert found.spec.target == "openvino-int4"
    trials = found.measurements["search"]["trials"]
    assert trials[0]["error"] == "QUANTIZATION_SKIPPED: it did not happen"

    class Nothing(Bench):
        def convert(self, spec: Spec) -> Path:
            raise JobError("QUANTIZATION_SKIPPED", f"not {spec.target}")

    with pytest.raises(JobError, match="not openvino-int8"):
        Nothing().run(spec_of(store, "nothing"), tmp_path / "lines")
