"""TRL's trainers of preferences, on examples that are already tokens and masks.

Nothing of TRL's own data preparation decides what is learned, and the order of examples is ours.
"""

from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import Trainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from millrace_tuner.jobs.order import EpochSampler

Batch = dict[str, torch.Tensor]


class Measured(NamedTuple):
    """Means over the pairs of a batch: the share in which the preferred answer has the higher
    reward, and by how much it is higher."""

    loss: float
    accuracy: float
    margin: float


class PreparedTrainer(Trainer):
    """A trainer whose examples are ready, in the order of ``sampler``."""

    def __init__(self, *, sampler: EpochSampler, **arguments: Any) -> None:
        self._sampler = sampler
        super().__init__(**arguments)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self._sampler

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class DirectTrainer(PreparedTrainer, DPOTrainer):
    """DPO and its losses."""

    def measured(self, batch: Batch) -> Measured:
        loss, _, _ = self.prediction_step(self.model, batch, prediction_loss_only=True)
        found = self._metrics["eval"]
        rewards = found["rewards/accuracies"][-1], found["rewards/margins"][-1]
        found.clear()
        return Measured(float(loss), *rewards)


class OddsRatioTrainer(PreparedTrainer, ORPOTrainer):
    """ORPO, on batches as DPO's; the model must have TRL's fused head."""

    @staticmethod
    def tokenize_row(feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return feature

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        """Mean log-probabilities of both answers, mean logits, loss of the preferred ones.

        As in the paper (equation 6 of arXiv:2403.07691) the loss is of answers alone; TRL's
        would be of the prompts as well.
        """
        batch = self._prepare_inputs(batch)
        outputs, labels = _answers(model, batch)
        places = labels.size(1) - 1  # without what a prompt that is learned puts before
        lengths = (labels[:, 1:] != -100).sum(-1)
        sums = outputs.log_probs[:, -places:].sum(-1)
        preferred, rejected = (sums / lengths).chunk(2)
        loss = -sums.chunk(2)[0].sum() / lengths.chunk(2)[0].sum()
        logits = outputs.mean_logits[:, -places:].chunk(2)
        found = (preferred, rejected, *logits, loss)
        return (*found, outputs.aux_loss) if self.aux_loss_enabled else found

    @torch.no_grad()
    def measured(self, batch: Any) -> Measured:
        loss, found = self.get_batch_loss_metrics(self.model, batch, train_eval="eval")
        return Measured(
            float(loss), found["eval_rewards/accuracies"], found["eval_rewards/margins"]
        )


class JudgedTrainer(PreparedTrainer, KTOTrainer):
    """KTO."""

    def measured(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """The loss of a batch, and ``beta`` times how much likelier each answer is than by the
        reference; shape (answers,)."""
        model: Any = self.model
        loss, _, _ = self.prediction_step(model, batch, prediction_loss_only=True)
        self._metrics["eval"].clear()
        with torch.no_grad():
            reference, _ = self.compute_ref_log_probs(  # type: ignore[no-untyped-call]
                self.ref_model or model, batch
            )
            outputs, labels = _answers(model, batch)
        likelihoods = outputs.log_probs[:, 1 - labels.size(1) :].sum(-1)
        return float(loss), self.beta * (likelihoods - reference)


def _answers(model: Any, batch: Batch) -> tuple[Any, torch.Tensor]:
    """What the fused head says of the answers' tokens, and the labels that mark them."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    token_ids, mask = batch["input_ids"], batch["attention_mask"]
    outputs = model(input_ids=token_ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return outputs, labels
