"""PPO for language models (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022,
arXiv:2203.02155; in detail Huang et al. 2024, arXiv:2403.17031), as a trainer of transformers.

Each batch of prompts is answered once and learned from in ``optimization_epochs`` steps of the
optimizer, the whole batch in each. The value head is one linear layer on the last hidden state
of the policy itself, not of a copy: that takes half the memory and one pass for both, and the
value loss has a small weight so that it does not shape the trunk. It begins at zero.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer

from millrace_tuner.jobs import policy
from millrace_tuner.jobs.advantages import (
    generalized_advantages,
    policy_losses,
    token_rewards,
    value_losses,
    whitened,
)
from millrace_tuner.jobs.policy import Pen, PromptSampler
from millrace_tuner.jobs.prompts import Prompt
from millrace_tuner.methods import ProximalPolicy

_STATE_NAME = "ppo.pt"

Batch = dict[str, Tensor]
"""Of answers with their prompts, right-padded: input_ids, attention_mask, labels of shape
(answers, tokens); mask, log_probs, values, advantages, returns of (answers, tokens - 1), each
place belonging to the token after it."""


class Scorer(Protocol):
    """What gives rewards (``reward_scorer.RewardScorer``)."""

    def score(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Of prompts with their answers, each of shape (tokens,); result (sequences,)."""


class PpoTrainer(Trainer):
    """Asks, scores and learns.

    Args:
        model: with TRL's fused head, which computes log-probabilities without all logits.
        reference: what the policy should stay near; None: the model without its adapter.
    """

    def __init__(
        self,
        *,
        method: ProximalPolicy,
        prompts: Sequence[Prompt],
        sampler: PromptSampler,
        pen: Pen,
        scorer: Scorer,
        precision: torch.dtype,
        reference: PreTrainedModel | None,
        **arguments: Any,
    ) -> None:
        places = Dataset.from_dict({"place": list(range(len(prompts)))})
        super().__init__(train_dataset=places, data_collator=_places, **arguments)
        self.model_accepts_loss_kwargs = False  # the loss is a mean already
        self._method = method
        self._prompts = prompts
        self._sampler = sampler
        self._pen = pen
        self._scorer = scorer
        self._precision = precision
        self._reference: Any = None if reference is None else _moved(reference, self.args.device)
        self._policy: Any = arguments["model"]
        _trunk(self._policy).register_forward_hook(self._keep_hidden)
        hidden_size = int(self._policy.config.get_text_config().hidden_size)
        self.value_head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_head.to(self.args.device)
        self._hidden: Tensor | None = None
        self._batch: Batch = {}
        self._batch_statistics: dict[str, float] = {}
        self._step_statistics: defaultdict[str, float] = defaultdict(float)
        self._piece = 0

    def _keep_hidden(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._hidden = outputs.last_hidden_state

    # What is asked.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """A whole batch of prompts at once; the trainer's own would bring what one forward
        pass takes."""
        loader: DataLoader[Any] = self._get_dataloader(
            dataset=self.train_dataset,  # type: ignore[arg-type]  # its stub is too narrow
            description="Training",
            batch_size=self._train_batch_size * self.args.gradient_accumulation_steps,
            sampler_fn=lambda _: self._sampler,
            is_training=True,
        )
        return loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Batch:
        """The piece of the batch that is next; a new batch is answered first where it is due."""
        is_due = self.state.global_step % self._method.optimization_epochs == 0
        if self._piece == 0 and is_due:
            self._roll_out([self._prompts[place] for place in inputs["place"]])
        size = self._train_batch_size
        start = self._piece * size
        self._piece = (self._piece + 1) % self.args.gradient_accumulation_steps
        return {name: tensor[start : start + size] for name, tensor in self._batch.items()}

    @torch.no_grad()
    def _roll_out(self, prompts: Sequence[Prompt]) -> None:
        method = self._method
        answers = policy.write(
            self._policy, prompts, self._pen, method.temperature, self._precision
        )
        sequences = [
            np.concatenate([prompt.token_ids, answer])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        scores = torch.from_numpy(self._scorer.score(sequences)).to(self.args.device)
        batch = _padded(prompts, sequences, self._pen.pad_id, self.args.device)
        was_training = self._policy.training
        self._policy.eval()
        log_probs, values, _ = self._in_pieces(self._read, batch)
        (reference,) = self._in_pieces(self._read_reference, batch)
        self._policy.train(was_training)
        mask = batch["mask"]
        rewards = token_rewards(scores, log_probs, reference, mask, method.divergence_coefficient)
        advantages = generalized_advantages(
            rewards, values, mask, discount=method.discount, decay=method.advantage_decay
        )
        self._batch = {
            **batch,
            "log_probs": log_probs,
            "values": values,
            "advantages": whitened(advantages, mask),
            "returns": advantages + values,
        }
        self.state.num_input_tokens_seen += sum(len(sequence) for sequence in sequences)
        self._batch_statistics = {
            "reward": float(scores.mean()),
            "reward_std": float(scores.std(correction=0)),
            "kl": float(((log_probs - reference) * mask).sum(dim=1).mean()),
            "completion_tokens": float(mask.sum(dim=1).mean()),
        }

    def _in_pieces(
        self, evaluate: Callable[[Batch], tuple[Tensor, ...]], batch: Batch
    ) -> list[Tensor]:
        size = self._train_batch_size
        rows = len(batch["input_ids"])
        pieces = [
            evaluate({name: tensor[start : start + size] for name, tensor in batch.items()})
            for start in range(0, rows, size)
        ]
        return [torch.cat(found) for found in zip(*pieces, strict=True)]

    # What is learned.

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, values and entropies, each of shape (answers, tokens - 1)."""
        outputs = self._forward(self._policy, batch)
        assert self._hidden is not None
        mask = batch["mask"]
        # Virtual tokens of an adapter stand before those of the batch.
        hidden = self._hidden[:, -mask.shape[1] - 1 : -1]
        self._hidden = None
        values = self.value_head(hidden.float()).squeeze(-1) * mask
        return _last(outputs.log_probs, mask), values, _last(outputs.entropy, mask)

    def _read_reference(self, batch: Batch) -> tuple[Tensor]:
        if self._reference is not None:
            outputs = self._forward(self._reference, batch)
        else:
            with self._policy.disable_adapter():
                outputs = self._forward(self._policy, batch)
        return (_last(outputs.log_probs, batch["mask"]),)

    def _forward(self, model: Any, batch: Batch) -> Any:
        names = ("input_ids", "attention_mask", "labels")
        with self.compute_loss_context_manager():  # type: ignore[no-untyped-call]
            return model(**{name: batch[name] for name in names}, fused_lm_head=True)

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        if self._piece == 0:
            # The trainer clears and clips the model's gradients only. Without clipping, Adam
            # still bounds what a step changes here.
            self.value_head.zero_grad()
            self._step_statistics.clear()
        loss: Tensor = super().training_step(*arguments, **named)
        return loss

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
        """Every token of the whole batch counts the same, whatever piece it is in."""
        method, mask = self._method, inputs["mask"]
        log_probs, values, entropy = self._read(inputs)
        ratio = torch.exp((log_probs - inputs["log_probs"]) * mask)
        tokens = self._batch["mask"].sum()
        terms = {
            "policy_loss": policy_losses(ratio, inputs["advantages"], method.clip_range),
            "value_loss": value_losses(
                values, inputs["values"], inputs["returns"], method.clip_range
            ),
            "entropy": entropy,
            "clip_fraction": ((ratio - 1).abs() > method.clip_range).float(),
        }
        means = {name: (term * mask).sum() / tokens for name, term in terms.items()}
        for name, mean in means.items():
            self._step_statistics[name] += float(mean.detach())
        loss = means["policy_loss"] + method.value_coefficient * means["value_loss"]
        # The trainer divides by the number of pieces, but these are shares of a mean.
        return loss * self.args.gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._batch_statistics | self._step_statistics
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    # What is kept.

    def create_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer()  # type: ignore[no-untyped-call]
        parameters = list(self.value_head.parameters())
        optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
        return optimizer

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
        state = {
            "value_head": self.value_head.state_dict(),
            "batch": self._batch,
            "statistics": self._batch_statistics,
        }
        written = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        torch.save(state, written / _STATE_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]
        if checkpoint is not None:
            device = self.args.device
            state = torch.load(Path(checkpoint) / _STATE_NAME, device, weights_only=True)
            self.value_head.load_state_dict(state["value_head"])
            self._batch = state["batch"]
            self._batch_statistics = state["statistics"]


def _last(found: Tensor, mask: Tensor) -> Tensor:
    """The places of the batch's own tokens."""
    return found[:, -mask.shape[1] :].float()


def _places(rows: Sequence[dict[str, int]]) -> dict[str, list[int]]:
    return {"place": [row["place"] for row in rows]}


def _moved(model: Any, device: torch.device) -> Any:
    return model.to(device)


def _trunk(model: Any) -> nn.Module:
    """What computes the hidden states, below the output head."""
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    trunk: nn.Module = whole.base_model
    return trunk


def _padded(
    prompts: Sequence[Prompt],
    sequences: Sequence[NDArray[np.int32]],
    pad_id: int,
    device: torch.device,
) -> Batch:
    shape = (len(sequences), max(len(sequence) for sequence in sequences))
    token_ids = torch.full(shape, pad_id)
    labels = torch.full(shape, -100)
    attention = torch.zeros(shape, dtype=torch.long)
    for row, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        ids = torch.from_numpy(sequence.astype(np.int64))
        start = len(prompt.token_ids)
        token_ids[row, : len(ids)] = ids
        labels[row, start : len(ids)] = ids[start:]
        attention[row, : len(ids)] = 1
    batch = {"input_ids": token_ids, "attention_mask": attention, "labels": labels}
    batch["mask"] = (labels[:, 1:] != -100).float()
    return {name: tensor.to(device) for name, tensor in batch.items()}
