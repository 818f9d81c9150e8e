"""The paged batch of the engine for checkpoints, when there is not room for all at once."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import millrace_registry.engines.paged
from tests.engine.tiny_model import TinyModel

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
COUNT = 60
PLENTY = 64 * 512


@pytest.fixture
def paged() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other, with a model as small
    yield millrace_registry.engines.paged
    torch.set_num_threads(threads)


class Run:
    """Eight requests of different lengths, greedily, each to ``COUNT`` tokens."""

    def __init__(self, paged: Any, tiny: TinyModel, cached_tokens: int, batch_tokens: int) -> None:
        self.batch = paged.PagedBatch(tiny.model, 2**30, cached_tokens, batch_tokens)
        self.tokens: dict[str, list[int]] = {}
        draw = np.random.default_rng(0)
        for number in range(8):
            prompt = draw.integers(3, 512, 100 + 7 * number).tolist()
            self.tokens[str(number)] = []
            self.batch.add(str(number), prompt)

    def choose(self, names: Any, logits: torch.Tensor) -> list[int]:
        chosen: list[int] = logits.argmax(-1).tolist()
        for name, token in zip(names, chosen, strict=True):
            self.tokens[name].append(token)
            if len(self.tokens[name]) == COUNT:
                self.batch.end(name)
        return chosen

    def finish(self, most_steps: int = 2000) -> dict[str, list[int]]:
        steps = 0
        while any(len(tokens) < COUNT for tokens in self.tokens.values()):
            self.batch.step(self.choose)
            steps += 1
            assert steps < most_steps, "it does not go on"
        return self.tokens


@pytest.mark.parametrize(("cached_tokens", "batch_tokens"), [(300, 512), (300, 48), (420, 130)])
def test_who_is_put_back_for_want_of_room_goes_on_as_if_never(
    paged: ModuleType, tiny: TinyModel, cached_tokens: int, batch_tokens: int
) -> None:
    expected = Run(paged, tiny, PLENTY, 512).finish()
    crowded = Run(paged, tiny, cached_tokens, batch_tokens)
    assert crowded.batch.capacity_tokens < sum(100 + COUNT for _ in range(8)) // 3
    assert crowded.finish() == expected


def test_the_cache_takes_no_more_than_it_may(paged: ModuleType, tiny: TinyModel) -> None:
    # Two layers of two heads of 16, a key and a value, and a column of the mask; all float32.
    token_bytes = (2 * 2 * 2 * 16 + 512) * 4
    batch = paged.PagedBatch(tiny.model, 320 * token_bytes, PLENTY, 512)
    assert batch.capacity_tokens == 320


def test_code_that_comes_with_a_checkpoint_is_not_run(
    paged: ModuleType, tiny: TinyModel, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C", '
        '"AutoModelForCausalLM": "theirs.M"}}'
    )
    (tmp_path / "theirs.py").write_text("open('ran', 'w')")
    (tmp_path / "model.safetensors").write_bytes((tiny.model / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="trust_remote_code"):
        paged.load(tmp_path)
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()
