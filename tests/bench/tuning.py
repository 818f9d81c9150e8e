"""How fast a tuning job trains, against transformers' Trainer and TRL's with their defaults.

Each is a process of its own, one after the other and round after round, on the same model of
7 M parameters, the same examples, in the same number of steps; the best round counts, which
others on the machine have disturbed least. Ours includes the state and the merged checkpoint at
the end, theirs the checkpoint that they save.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.bench import model
from tests.bench.figures import Figure

ROUNDS = 2
_GOAL = 1.5
_PATIENCE_SECONDS = 600.0
_NAMES = {"trainer": "transformers' Trainer", "trl": "TRL's SFTTrainer"}


def measure(folder: Path, say: Callable[[str], None]) -> list[Figure]:
    """Tokens a second and memory, of full fine-tuning and of LoRA."""
    _make_base(folder / "base/model")
    return [figure for trained in ("full", "lora") for figure in _compare(folder, trained, say)]


def _compare(folder: Path, trained: str, say: Callable[[str], None]) -> list[Figure]:
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in ("millrace", *_NAMES)}
    for _ in range(ROUNDS):
        for name, found in reports.items():
            found.append(_run(f"{name}-{trained}", folder))
            pace = found[-1]["tokens"] / found[-1]["seconds"]
            say(f"{name} {trained}: {pace:,.0f} tokens/s, {found[-1]['mebibytes']:,.0f} MiB")
    best = {name: max(r["tokens"] / r["seconds"] for r in found) for name, found in reports.items()}
    most = {name: max(r["mebibytes"] for r in found) for name, found in reports.items()}
    return [
        *(
            Figure(f"{trained}: {title}", best["millrace"], "tokens/s", best[name], _GOAL)
            for name, title in _NAMES.items()
        ),
        *(
            Figure(f"{trained}: memory, {title}", most["millrace"], "MiB", most[name])
            for name, title in _NAMES.items()
        ),
    ]


def _run(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.tuning_run", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


def _make_base(directory: Path) -> None:
    torch.manual_seed(0)
    tokenizer: Any = model.tokenizer_of(8192)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(directory)
