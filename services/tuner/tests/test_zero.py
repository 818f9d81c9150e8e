"""Tuning under DeepSpeed's ZeRO, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tuner_builders import conversations, write_base, write_jsonl

from millrace_runtime import manifest
from millrace_runtime.errors import InvalidArgument
from millrace_tuner import method_rules
from millrace_tuner.methods import Adapter, DirectPreference, Method, Supervised

PLAIN: dict[str, Any] = {"precision": "float32"}
RUNS: dict[str, dict[str, Any]] = {
    # Without ZeRO first: what ZeRO leaves in the process is not to help it.
    "all-0": {"stage": 0, "adapter": {"kind": "none"}, "more": PLAIN},
    "lora-0": {"stage": 0, "adapter": {"rank": 4, "alpha": 8}, "more": PLAIN},
    "all-1": {"stage": 1, "adapter": {"kind": "none"}, "more": PLAIN},
    "lora-2": {"stage": 2, "adapter": {"rank": 4, "alpha": 8}, "more": PLAIN},
    "lora-3": {"stage": 3, "adapter": {"rank": 4, "alpha": 8}, "more": PLAIN},
    "all-3": {"stage": 3, "adapter": {"kind": "none"}, "more": PLAIN},
    "lora-2-stopped": {
        "stage": 2,
        "adapter": {"rank": 4, "alpha": 8},
        "more": PLAIN,
        "stop_at": 4,
    },
    "all-3-stopped": {
        "stage": 3,
        "adapter": {"kind": "none"},
        "more": {"precision": "float32", "gradient_checkpointing": True},
        "stop_at": 4,
    },
    "lora-3-bfloat16": {
        "stage": 3,
        "adapter": {"rank": 4, "alpha": 8},
        "more": {"precision": "bfloat16"},
    },
}
UNDER_ZERO = [name for name in RUNS if name[-1] in "123"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("zero")
    write_base(directory / "base")
    write_jsonl(directory / "train.jsonl", conversations(20))
    (directory / "runs.json").write_text(
        json.dumps([{**run, "name": name} for name, run in RUNS.items()])
    )
    script = Path(__file__).with_name("zero_runs.py")
    command = [sys.executable, "-W", "ignore", str(script), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", UNDER_ZERO)
def test_it_learns_the_same_as_without(results: dict[str, Any], name: str) -> None:
    plain, found = results[f"{name[:-1]}0"], results[name]
    assert not plain["is_enabled"]
    assert found["is_enabled"]
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert found["losses"][-1] < found["losses"][0] - 0.1
    assert found["valid"] == pytest.approx(plain["valid"], rel=1e-5)


@pytest.mark.parametrize("name", UNDER_ZERO)
def test_what_it_writes_is_whole(results: dict[str, Any], name: str) -> None:
    from safetensors.torch import load_file

    plain, found = results[f"{name[:-1]}0"], results[name]
    assert found["files"] == plain["files"]
    weights = [each for each in found["files"] if each.endswith(".safetensors")]
    assert len(weights) == (2 if name.startswith("lora") else 1)
    for each in weights:
        expected = load_file(Path(plain["checkpoint"]) / each)
        written = load_file(Path(found["checkpoint"]) / each)
        assert written.keys() == expected.keys()
        for key, tensor in expected.items():
            assert written[key].dtype == tensor.dtype
            assert written[key].numpy() == pytest.approx(tensor.numpy(), abs=1e-4)


@pytest.mark.parametrize("name", ["lora-2", "all-3"])
def test_stopped_it_goes_on_and_ends_with_the_same_bytes(
    results: dict[str, Any], name: str
) -> None:
    whole, stopped = results[name], results[f"{name}-stopped"]
    assert stopped["starts"] == [0, 4]
    assert stopped["losses"] == whole["losses"]
    for each in whole["files"]:
        if each.endswith(".safetensors"):
            first, second = (Path(run["checkpoint"]) / each for run in (whole, stopped))
            assert manifest.sha256_file(first) == manifest.sha256_file(second)


def test_in_bfloat16_it_learns_the_same_but_for_rounding(results: dict[str, Any]) -> None:
    plain, found = results["lora-0"], results["lora-3-bfloat16"]
    assert found["is_enabled"]
    assert found["losses"] == pytest.approx(plain["losses"], rel=5e-3)
    assert found["losses"][0] != plain["losses"][0]


@pytest.mark.parametrize(
    ("method", "adapter", "stage", "words"),
    [
        (DirectPreference(), Adapter(), 1, "'dpo' computes"),
        (Supervised(), Adapter("adalora"), 2, "gradients"),
        (Supervised(), Adapter(quantized_base=True), 3, "four bits"),
    ],
)
def test_what_it_cannot_train_is_refused_by_name(
    method: Method, adapter: Adapter, stage: int, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        method_rules.require_shardable(method, adapter, stage)
    assert caught.value.field == "hyperparameters.zero_stage"
    method_rules.require_shardable(method, adapter, 0)


def test_what_it_can_train_is_let_through() -> None:
    for stage in (1, 2, 3):
        method_rules.require_shardable(Supervised(), None, stage)
    method_rules.require_shardable(Supervised(), Adapter(quantized_base=True), 2)
