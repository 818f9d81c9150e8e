"""Pre-train a decoder-only transformer: one rank of it, under torchrun (``launch.py``).

Deterministic on CPU: the data order is a function of (seed, epoch, position), the learning
rate of the step, and all random numbers are in the state, so that a run that was killed ends
with the same weights as one that was not.
"""

import math
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  # as everybody writes it

from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.manifest import ManifestError
from millrace_runtime.tracking import Tracking
from millrace_trainer.jobs import checkpoint, model
from millrace_trainer.jobs.data import Windows
from millrace_trainer.jobs.hooks import Hook, Hooks, ReportProgress, Track
from millrace_trainer.jobs.specification import Hyperparameters, Spec


def work(spec: Spec, reporter: Reporter) -> None:
    """Train from the newest committed state, or from the start, to the last step."""
    torch.set_num_threads(max(1, spec.threads // spec.hyperparameters.processes))
    _verify(spec)
    deepspeed.init_distributed("gloo", verbose=False)
    is_first = dist.get_rank() == 0
    if is_first:
        spec.output_directory.mkdir(parents=True, exist_ok=True)
        checkpoint.sweep(spec.output_directory)
    dist.barrier()
    hooks = Hooks(_hooks(spec, reporter) if is_first else [])
    for found in checkpoint.committed(spec.output_directory):
        hooks.on_checkpoint(found)
    train(spec, hooks)
    hooks.on_end()
    if is_first:
        final = checkpoint.committed(spec.output_directory)[-1]
        reporter.report("result", steps=spec.hyperparameters.total_steps, digest=final.digest)


def train(spec: Spec, hooks: Hooks) -> None:
    """The loop: load, step, tell; evaluate and save at checkpoints."""
    settings = spec.hyperparameters
    length = spec.architecture.context_length
    shards = sorted(spec.dataset_path.glob("train-*.npy"))
    data = Windows(shards, length, settings.seed)
    heldout = _heldout(spec, length)
    network = model.build(spec)
    flops_per_token = model.flops_per_token(network, spec.architecture)
    peak = model.peak_flops() * settings.processes
    engine = model.start_engine(network, spec)
    state = checkpoint.newest_state(spec.output_directory)
    done: dict[str, Any] = {"step": 0, "train_loss": 0.0}
    if state:
        done = checkpoint.load_state(engine, state)
    if done["step"] and not checkpoint.path_of(spec.output_directory, done["step"]).exists():
        _save_checkpoint(engine, spec, hooks, heldout, done)  # killed between state and checkpoint
    tokens = settings.batch_sequences * length

    for step in range(done["step"] + 1, settings.total_steps + 1):
        started = time.perf_counter()
        rate = learning_rate(step, settings)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros(1)
        for micro in range(settings.accumulation_steps):
            position = _position(step, micro, settings)
            ids = data.at(position, settings.micro_batch_sequences)  # (B, T + 1)
            loss = next_token_loss(engine, ids)
            engine.backward(loss)
            engine.step()  # DeepSpeed updates the weights at the last micro-batch of a step
            total += loss.detach().float()
        train_loss = _mean_over_ranks(total / settings.accumulation_steps)
        seconds = time.perf_counter() - started
        hooks.on_step(
            step,
            {
                "loss": train_loss,
                "learning_rate": rate,
                "gradient_norm": float(engine.get_global_grad_norm() or 0.0),
                "tokens_per_second": tokens / seconds,
                "model_flops_utilization": tokens / seconds * flops_per_token / peak,
            },
        )
        if not math.isfinite(train_loss):
            raise JobError(
                "TRAINING_DIVERGED",
                f"the loss is {train_loss} at step {step}; lower learning_rate (now "
                f"{settings.learning_rate:g}) or raise warmup_steps",
            )
        if step % settings.checkpoint_every_steps == 0 or step == settings.total_steps:
            done = {"step": step, "train_loss": train_loss}
            checkpoint.save_state(engine, spec.output_directory, step, done)
            _save_checkpoint(engine, spec, hooks, heldout, done)


def next_token_loss(engine: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token given those before it; ids (B, T + 1) -> ()."""
    logits = engine(input_ids=ids[:, :-1]).logits  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def learning_rate(step: int, settings: Hyperparameters) -> float:
    """Linear warm-up to the peak, then a cosine to its minimum at the last step (1-based)."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    span = max(1, settings.total_steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / span))
    lowest = settings.minimum_learning_rate_ratio
    return settings.learning_rate * (lowest + (1 - lowest) * cosine)


def _position(step: int, micro: int, settings: Hyperparameters) -> int:
    """Where in the data order a rank's micro-batch of a step begins."""
    before = (step - 1) * settings.batch_sequences
    within = micro * settings.processes + dist.get_rank()
    return before + within * settings.micro_batch_sequences


def _heldout(spec: Spec, length: int) -> torch.Tensor | None:
    """Held-out sequences (N, T + 1); None where the dataset holds out too little for one."""
    try:
        windows = Windows(sorted(spec.dataset_path.glob("heldout-*.npy")), length, 0)
    except JobError:
        return None
    return windows.head(spec.evaluation_sequences)


@torch.no_grad()
def _evaluate(engine: Any, heldout: torch.Tensor | None, at_once: int) -> float | None:
    if heldout is None:
        return None
    engine.eval()
    losses = [next_token_loss(engine, ids) * len(ids) for ids in torch.split(heldout, at_once)]
    engine.train()
    return float(torch.stack(losses).sum() / len(heldout))


def _save_checkpoint(
    engine: Any, spec: Spec, hooks: Hooks, heldout: torch.Tensor | None, done: dict[str, Any]
) -> None:
    settings, step = spec.hyperparameters, done["step"]
    metadata = {
        "model": spec.model,
        "step": step,
        "tokens_seen": step * settings.batch_sequences * spec.architecture.context_length,
        "train_loss": done["train_loss"],
        "heldout_loss": _evaluate(engine, heldout, settings.micro_batch_sequences),
        "final": step == settings.total_steps,
        "parameters": sum(p.numel() for p in engine.module.parameters()),
        "dataset_digest": spec.dataset_digest,
        "parent_checkpoint_digest": spec.initial_checkpoint_digest,
        "architecture": spec.architecture.model_dump(),
        "hyperparameters": settings.model_dump(),
    }
    saved = checkpoint.save(
        engine, spec.output_directory, spec.dataset_path / "tokenizer", metadata
    )
    if saved is not None:
        hooks.on_checkpoint(saved)
    dist.barrier()


def _mean_over_ranks(value: torch.Tensor) -> float:
    dist.all_reduce(value)
    return float(value) / dist.get_world_size()


def _hooks(spec: Spec, reporter: Reporter) -> list[Hook]:
    hooks: list[Hook] = [ReportProgress(reporter, spec.hyperparameters.total_steps)]
    if spec.mlflow_tracking_uri:
        parameters = {**spec.architecture.model_dump(), **spec.hyperparameters.model_dump()}
        hooks.append(Track(Tracking(spec.mlflow_tracking_uri, spec.run_id, spec.model, parameters)))
    return hooks


def _verify(spec: Spec) -> None:
    """
    Raises:
        JobError: DATASET_DAMAGED or CHECKPOINT_DAMAGED, naming the file.
    """
    _verify_directory(spec.dataset_path, spec.dataset_digest, "DATASET_DAMAGED")
    if spec.initial_checkpoint_path is not None:
        digest = spec.initial_checkpoint_digest or ""
        _verify_directory(spec.initial_checkpoint_path, digest, "CHECKPOINT_DAMAGED")


def _verify_directory(path: Path, digest: str, reason: str) -> None:
    try:
        manifest.verify(path, digest)
    except ManifestError as error:
        raise JobError(reason, str(error)) from error


if __name__ == "__main__":
    jobs.run("trainer.pretrain", Spec, work)
