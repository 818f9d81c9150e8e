"""The model and its optimizer, as DeepSpeed trains them."""

import math
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from millrace_runtime.jobs import JobError
from millrace_trainer.jobs import random_numbers
from millrace_trainer.jobs.specification import Architecture, Hyperparameters, Spec

_ADAM_BETAS = (0.9, 0.95)
_PEAK_MATRIX_SIZE = 2048
_PEAK_MATRIX_SIZE_ACCELERATOR = 8192  # smaller ones do not fill a GPU
_PEAK_SECONDS = 0.5


def build(spec: Spec) -> torch.nn.Module:
    """The model with its initial weights: random by the seed, or a checkpoint's."""
    random_numbers.seed(spec.hyperparameters.seed)
    folder = spec.dataset_path / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if spec.initial_checkpoint_path is None:
        configuration = _configuration(spec.architecture, tokenizer)
        model = Qwen3ForCausalLM(configuration)  # type: ignore[no-untyped-call]
    else:
        model = _load(spec.initial_checkpoint_path / "model", folder)
    model.generation_config = _generation_configuration(tokenizer)
    return model


def _load(path: Path, tokenizer: Path) -> Any:
    """A checkpoint's weights, in fp32: they are the master weights to be."""
    if (path / "tokenizer.json").read_bytes() != (tokenizer / "tokenizer.json").read_bytes():
        raise JobError(
            "TOKENIZER_MISMATCH",
            "the dataset's tokenizer is not the one that the initial checkpoint was trained with; "
            "continue on a dataset that was built with that one",
        )
    return Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)


def _configuration(architecture: Architecture, tokenizer: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.attention_heads,
        num_key_value_heads=architecture.key_value_heads,
        head_dim=architecture.head_size,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _generation_configuration(tokenizer: Any) -> GenerationConfig:
    """An answer ends with its turn, and a document with its end."""
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    ends.add(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    ids = sorted(end for end in ends if end is not None and end >= 0)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=ids, pad_token_id=tokenizer.pad_token_id
    )


def start_engine(model: torch.nn.Module, spec: Spec) -> Any:
    """DeepSpeed around the model: bf16 with fp32 master weights, ZeRO, clipping, accumulation.

    torch's own fused AdamW: DeepSpeed's CPU Adam would have to be compiled on first use.
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    settings = spec.hyperparameters
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_ADAM_BETAS, fused=True)
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=_deepspeed_configuration(settings, spec.zero_stage)
    )
    if spec.compile:
        engine.module.compile()
    return engine


def _deepspeed_configuration(settings: Hyperparameters, zero_stage: int) -> dict[str, Any]:
    return {
        "train_batch_size": settings.batch_sequences,
        "train_micro_batch_size_per_gpu": settings.micro_batch_sequences,
        "gradient_accumulation_steps": settings.accumulation_steps,
        "gradient_clipping": settings.gradient_clip_norm,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def flops_per_token(model: torch.nn.Module, architecture: Architecture) -> float:
    """6N + 12LHQT: forward and backward (PaLM, arXiv:2204.02311, appendix B)."""
    parameters = sum(p.numel() for p in model.parameters())
    attention = architecture.layers * architecture.hidden_size * architecture.context_length
    return 6.0 * parameters + 12.0 * attention


def peak_flops() -> float:
    """What this process reaches in a bf16 matrix product, operations a second, measured now.

    The best of half a second's products: on a machine that others use too, the mean says more
    of them.
    """
    accelerator = get_accelerator()
    device = accelerator.current_device_name()
    size = _PEAK_MATRIX_SIZE if device == "cpu" else _PEAK_MATRIX_SIZE_ACCELERATOR
    matrix = torch.randn(size, size, device=device).bfloat16()
    best_seconds, ends = math.inf, time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < ends:
        accelerator.synchronize()
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        accelerator.synchronize()
        best_seconds = min(best_seconds, time.perf_counter() - started)
    return 2 * size**3 / best_seconds
