"""Pre-train a decoder-only transformer: one rank of it (``rank.py``), under torchrun.

Deterministic on CPU: the data order is a function of (seed, epoch, position), the learning
rate of the step, and all random numbers are in the state, so that a run that was killed ends
with the same weights as one that was not.

Errors that a user can put right: INVALID_SPEC, DATASET_DAMAGED, CHECKPOINT_DAMAGED,
DATASET_TOO_SMALL, TOKENIZER_MISMATCH, OUTPUT_DIRECTORY_IN_USE, TRAINING_DIVERGED. CANCELLED is
what a job says that was told to stop (SIGTERM); it has saved where it was.
"""

import json
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.manifest import ManifestError
from millrace_runtime.tracking import Tracking, tracked_experiment
from millrace_trainer.jobs import model, ranks
from millrace_trainer.jobs.checkpoint import Checkpoints, load_state
from millrace_trainer.jobs.data import Windows
from millrace_trainer.jobs.hooks import Hook, Hooks, ReportProgress, Track
from millrace_trainer.jobs.specification import Hyperparameters, Spec


def work(spec: Spec, reporter: Reporter) -> None:
    """Train from the newest committed state, or from the start, to the last step."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    torch.set_num_threads(max(1, spec.threads // spec.hyperparameters.processes))
    _verify(spec)
    ranks.join()
    checkpoints = Checkpoints(spec.output_directory, _digest(spec))
    hooks = Hooks([])
    if ranks.is_first():
        checkpoints.open()
        hooks = Hooks(_hooks(spec, reporter))
        for found in checkpoints.committed():
            hooks.on_checkpoint(found)
    last_step = spec.hyperparameters.total_steps
    if not ranks.told_by_first(lambda: checkpoints.at(last_step)):
        train(spec, checkpoints, hooks, stop)
    hooks.on_end()
    if ranks.is_first():
        final = checkpoints.at(last_step)
        assert final is not None, "training ends with a checkpoint"
        reporter.report("result", steps=last_step, digest=final.digest)
        checkpoints.remove_states()


def train(spec: Spec, checkpoints: Checkpoints, hooks: Hooks, stop: threading.Event) -> None:
    """The loop: load, step, tell; evaluate and save at checkpoints."""
    settings = spec.hyperparameters
    length = spec.architecture.context_length
    data = Windows(sorted(spec.dataset_path.glob("train-*.npy")), length, settings.seed)
    heldout = _heldout(spec, length)
    network = model.build(spec)
    flops_per_token = model.flops_per_token(network, spec.architecture)
    peak_flops = model.peak_flops() * settings.processes
    engine = model.start_engine(network, spec)
    state = ranks.told_by_first(checkpoints.newest_state)
    done = load_state(engine, state) if state else {"step": 0}
    if _is_checkpoint(done["step"], settings) and not ranks.told_by_first(
        lambda: checkpoints.at(done["step"])
    ):
        _save(engine, spec, checkpoints, hooks, heldout, done)  # killed before it was committed

    for step in range(done["step"] + 1, settings.total_steps + 1):
        started = time.perf_counter()
        rate = learning_rate(step, settings)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=engine.device)
        for micro in range(settings.accumulation_steps):
            ids = data.at(_position(step, micro, settings), settings.micro_batch_sequences)
            loss = next_token_loss(engine, ids.to(engine.device))  # (B, T + 1) -> ()
            engine.backward(loss)
            engine.step()  # DeepSpeed updates the weights at the last micro-batch of a step
            total += loss.detach()
        train_loss, stopping = ranks.mean(
            [float(total) / settings.accumulation_steps, float(stop.is_set())]
        )
        tokens_per_second = spec.tokens_per_step / (time.perf_counter() - started)
        norm = float(engine.get_global_grad_norm())
        if not math.isfinite(train_loss + norm):
            raise JobError("TRAINING_DIVERGED", _divergence(step, train_loss, norm, settings))
        hooks.on_step(
            step,
            {
                "loss": train_loss,
                "learning_rate": rate,
                "gradient_norm": norm,
                "tokens_per_second": tokens_per_second,
                "model_flops_utilization": tokens_per_second * flops_per_token / peak_flops,
            },
        )
        done = {"step": step, "train_loss": train_loss}
        if _is_checkpoint(step, settings):
            checkpoints.save_state(engine, done)
            _save(engine, spec, checkpoints, hooks, heldout, done)
        elif stopping:
            checkpoints.save_state(engine, done)
        if stopping and step < settings.total_steps:
            raise JobError("CANCELLED", f"told to stop at step {step}; a restart goes on from it")


def next_token_loss(engine: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token given those before it; ids (B, T + 1) -> ()."""
    logits = engine(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T, V)
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
    within = micro * settings.processes + ranks.number()
    return before + within * settings.micro_batch_sequences


def _is_checkpoint(step: int, settings: Hyperparameters) -> bool:
    is_due = step % settings.checkpoint_every_steps == 0
    return step > 0 and (is_due or step == settings.total_steps)


def _divergence(step: int, loss: float, norm: float, settings: Hyperparameters) -> str:
    return (
        f"at step {step} the loss is {loss:g} and the gradient's norm {norm:g}; lower "
        f"learning_rate (now {settings.learning_rate:g}) or raise warmup_steps "
        f"(now {settings.warmup_steps})"
    )


def _heldout(spec: Spec, length: int) -> torch.Tensor | None:
    """Held-out sequences (N, T + 1); None where the dataset holds out too little for one."""
    try:
        windows = Windows(sorted(spec.dataset_path.glob("heldout-*.npy")), length, 0)
    except JobError:
        return None
    return windows.head(spec.evaluation_sequences)


@torch.no_grad()
def evaluate(engine: Any, heldout: torch.Tensor | None, at_once: int) -> float | None:
    """Mean next-token loss on the held-out sequences (N, T + 1), nats."""
    if heldout is None:
        return None
    engine.eval()
    batches = torch.split(heldout.to(engine.device), at_once)
    losses = [next_token_loss(engine, ids) * len(ids) for ids in batches]
    engine.train()
    return float(torch.stack(losses).sum() / len(heldout))


def _save(
    engine: Any,
    spec: Spec,
    checkpoints: Checkpoints,
    hooks: Hooks,
    heldout: torch.Tensor | None,
    done: dict[str, Any],
) -> None:
    step = done["step"]
    heldout_loss = evaluate(engine, heldout, spec.hyperparameters.micro_batch_sequences)
    metadata = {
        "model": spec.model,
        "step": step,
        "tokens_seen": step * spec.tokens_per_step,
        "train_loss": done["train_loss"],
        "heldout_loss": heldout_loss,
        "final": step == spec.hyperparameters.total_steps,
        "parameters": sum(p.numel() for p in engine.module.parameters()),
        "dataset_digest": spec.dataset_digest,
        "parent_checkpoint_digest": spec.initial_checkpoint_digest,
        "architecture": spec.architecture.model_dump(),
        "hyperparameters": spec.hyperparameters.model_dump(),
    }
    saved = checkpoints.save(engine, spec.dataset_path / "tokenizer", metadata)
    if saved is not None:
        hooks.on_checkpoint(saved)
    ranks.wait()


def _hooks(spec: Spec, reporter: Reporter) -> list[Hook]:
    total = spec.hyperparameters.total_steps
    hooks: list[Hook] = [ReportProgress(reporter, total, spec.report_seconds)]
    if spec.mlflow_tracking_uri:
        parameters = {**spec.architecture.model_dump(), **spec.hyperparameters.model_dump()}
        experiment = tracked_experiment(spec.tenant, spec.model)
        tracking = Tracking(spec.mlflow_tracking_uri, spec.run_id, experiment, parameters)
        hooks.append(Track(tracking))
    return hooks


def _digest(spec: Spec) -> str:
    return manifest.sha256_bytes(json.dumps(spec.identity(), sort_keys=True).encode())


def _verify(spec: Spec) -> None:
    """
    Raises:
        JobError: DATASET_DAMAGED or CHECKPOINT_DAMAGED, naming the file.
    """
    _verify_directory(spec.dataset_path, spec.dataset_digest, "DATASET_DAMAGED")
    if spec.initial_checkpoint_path is not None:
        assert spec.initial_checkpoint_digest is not None, "the specification was validated"
        _verify_directory(
            spec.initial_checkpoint_path, spec.initial_checkpoint_digest, "CHECKPOINT_DAMAGED"
        )


def _verify_directory(path: Path, digest: str, reason: str) -> None:
    try:
        manifest.verify(path, digest)
    except ManifestError as error:
        raise JobError(reason, str(error)) from error
