"""Golden prompts on a real Triton: a damaged model scores them worse, and the same one as well."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from millrace_compressor.jobs import evaluate, quantize
from millrace_compressor.jobs import golden as job
from millrace_registry import golden as asking
from millrace_registry.domain import Content, Interface, Version
from millrace_registry.evidence_store import GoldenScore
from millrace_registry.golden_pairs import pairs_of
from millrace_registry.triton import Triton
from millrace_runtime import golden, manifest
from millrace_runtime.golden import GoldenPrompt
from tests.engine.served import MODEL, ServedEngine, is_installed
from tests.engine.tiny_model import CONTEXT_TOKENS, TEXT, TinyModel

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="needs `make triton`"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
INTERFACE = Interface(CONTEXT_TOKENS, "{{ messages[0].content }}", "", "")


@pytest.fixture(scope="module")
def artifact(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Committed, with the golden prompts that the compressor leaves."""
    folder = tmp_path_factory.mktemp("golden")
    temporary = manifest.temporary_sibling(folder / "artifact")
    shutil.copytree(tiny.artifact, temporary, dirs_exist_ok=True)
    ids = np.array(tiny.encode(TEXT)[: 64 * 64], np.int64)
    windows = ids[: len(ids) // 64 * 64].reshape(-1, 64)
    job.write(temporary, tiny.model, windows, evaluate.Original(tiny.model))
    manifest.commit(temporary, folder / "artifact", "artifact", {})
    return folder / "artifact"


@pytest.fixture(scope="module")
def prompts(artifact: Path) -> list[GoldenPrompt]:
    return golden.read(artifact)


def permuted(model: Any) -> None:
    weights = model.get_input_embeddings().weight
    rows = torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))
    weights.data = weights.data[rows]


def scaled(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data * 4)


@pytest.fixture(scope="module", params=[permuted, scaled], ids=lambda damage: damage.__name__)
def damaged(
    request: pytest.FixtureRequest,
    tiny: TinyModel,
    engine: ServedEngine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The name on Triton of the model with damaged weights."""
    folder, name = tmp_path_factory.mktemp("damaged"), f"default.{request.param.__name__}"
    save(tiny.model, folder / "model", request.param)
    with ThreadPoolExecutor(max_workers=1) as own_thread:
        convert = own_thread.submit(
            quantize.convert, folder / "model", "openvino-fp32", folder / "artifact"
        )
        convert.result()
    engine.load(name, artifact=folder / "artifact")
    yield name
    engine.unload(name)


def save(model: Path, output: Path, damage: Callable[[Any], None]) -> None:
    shutil.copytree(model, output)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    damage(loaded)
    loaded.save_pretrained(output)


def version_of(number: int, interface: Interface = INTERFACE) -> Version:
    content, now = Content("", "", 0), datetime.now(UTC)
    made = Version("default", "tiny", number, "TARGET_OPENVINO_FP32", content, {}, {}, "", now, "")
    return Version(**{**vars(made), "interface": interface})


def scores(
    engine: ServedEngine, name: str, number: int, artifact: Path, prompts: list[GoldenPrompt]
) -> list[GoldenScore]:
    triton, version = Triton(engine.address, None), version_of(1)
    digest = asking.digest_of_tokenizer(artifact)
    asked = asking.questions(prompts, version, artifact, digest)
    found = []
    for prompt, question in asked.items():
        assert question is not None
        answered = asking.ask(triton, name, version, question, None)
        found.append(GoldenScore(number, prompt, answered.score, answered.answer_tokens))
    return found


def test_a_version_scores_as_the_checkpoint_did(
    engine: ServedEngine, artifact: Path, prompts: list[GoldenPrompt]
) -> None:
    found = scores(engine, MODEL, 1, artifact, prompts)
    assert [each.score for each in found] == pytest.approx([p.original for p in prompts], abs=0.01)
    assert [each.answer_tokens is not None for each in found].count(True) == 6


def test_the_same_model_twice_makes_pairs_without_difference(
    engine: ServedEngine, artifact: Path, prompts: list[GoldenPrompt]
) -> None:
    both = [*scores(engine, MODEL, 1, artifact, prompts)]
    both += scores(engine, MODEL, 2, artifact, prompts)
    pairs = pairs_of(both, 2, 1, {})
    assert len(pairs) == job.WINDOWS
    assert all(abs(pair.difference) < 1e-4 for pair in pairs)


def test_a_damaged_model_scores_worse(
    engine: ServedEngine, damaged: str, artifact: Path, prompts: list[GoldenPrompt]
) -> None:
    both = scores(engine, MODEL, 1, artifact, prompts)
    both += scores(engine, damaged, 2, artifact, prompts)
    pairs = pairs_of(both, 2, 1, {})
    assert fmean(pair.difference for pair in pairs) < -0.2
    assert sum(pair.difference < 0 for pair in pairs) > 0.8 * len(pairs)


def test_a_broken_template_asks_something_else(artifact: Path, tiny: TinyModel) -> None:
    ids, after = tiny.encode("What is a mill?"), tiny.encode(" A wheel")
    prompt = GoldenPrompt(
        "chat/user",
        ids,
        after,
        "What is a mill?",
        " A wheel",
        messages=[{"role": "user", "content": "What is a mill?"}],
    )
    digest = asking.digest_of_tokenizer(artifact)

    def asked(template: str) -> Any:
        interface = Interface(CONTEXT_TOKENS, template, "", "")
        return asking.questions([prompt], version_of(1, interface), artifact, digest)["chat/user"]

    right = asked(INTERFACE.chat_template)
    assert right.token_ids == [*ids, *after]
    assert asked("{{ messages[0].role }}").token_ids != right.token_ids
    assert asked("{{ messages[0] | nothing }}") is None
    other = asking.questions([prompt], version_of(1), artifact, "sha256:another")["chat/user"]
    assert other == right
