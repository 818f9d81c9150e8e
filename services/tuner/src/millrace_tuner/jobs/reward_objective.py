"""Learning to score answers (Bradley-Terry), with TRL's RewardTrainer.

The score is read at the last token that is not padding: the stop token of the answer, as the
sequences end there. The head is trained whole, whatever the adapter.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer, suppress_seqcls_warning
from trl.trainer.utils import disable_dropout_in_model

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import adapter, preference_measures
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.objective import Counts, Criterion
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.preference_batches import ComparedCollator, compared_row
from millrace_tuner.jobs.preference_examples import Compared, Material
from millrace_tuner.jobs.preference_trainers import Batch, Measured, PreparedTrainer
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import RewardModel


class ScoreTrainer(PreparedTrainer, RewardTrainer):
    """TRL's trainer, on batches as DPO's."""

    def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        answers = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return super().compute_loss(  # type: ignore[no-untyped-call]
            model, answers, *more, **named
        )

    @torch.no_grad()
    def measured(self, batch: Batch) -> Measured:
        loss, outputs = self.compute_loss(self.model, batch, return_outputs=True)
        self._metrics["eval"].clear()
        preferred, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        accuracy = (preferred > rejected).float().mean()
        return Measured(float(loss), float(accuracy), float((preferred - rejected).mean()))


class RewardObjective:
    """``objective.Objective`` of the method "reward"."""

    task = "SEQ_CLS"
    criterion = Criterion()
    names: Mapping[str, str] = {
        "train_reward_accuracy": "accuracy",
        "train_reward_margin": "margin",
    }

    def __init__(self, codec: ChatCodec, material: Material[Compared], method: RewardModel) -> None:
        self._codec = codec
        self._material = material
        self._method = method
        self._collate = ComparedCollator(codec.tokenizer.pad_token_id)
        self.counts = Counts(**material.counts)
        self.longest_tokens = 2 * material.longest_tokens  # both answers share a forward pass

    def load_model(self, directory: Path) -> PreTrainedModel:
        """The base, without the dropout of its own, and with a new head of one score that is
        drawn from the global random state."""
        try:
            with suppress_seqcls_warning():
                model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                    directory,
                    num_labels=1,
                    pad_token_id=self._codec.tokenizer.pad_token_id,
                    dtype=torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, KeyError) as error:
            message = f"the base checkpoint's model cannot be given a head: {error}"
            raise JobError("BASE_MODEL_UNSUPPORTED", message) from error
        disable_dropout_in_model(model)
        return model

    def steps_per_epoch(self, batch_size: int) -> int:
        return math.ceil(len(self._material.training) / batch_size)

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        training = self._material.training
        lengths = [example.longest_tokens for example in training]
        return ScoreTrainer(
            sampler=EpochSampler(lengths, run.spec.hyperparameters.batch_size, run.spec.seed),
            model=model,
            args=RewardConfig(
                **run.arguments(),
                max_length=None,
                disable_dropout=False,
                remove_unused_columns=False,
                center_rewards_coefficient=self._method.center_coefficient or None,
            ),
            data_collator=self._collate,
            train_dataset=Dataset.from_list([compared_row(example) for example in training]),
            processing_class=self._codec.tokenizer,
            peft_config=adapter.configuration(run.spec, model, self.task),
        )

    def measure(self, run: Run) -> dict[str, float]:
        return preference_measures.of_pairs(run, self._material.heldout, self._collate)

    def heldout_stream(self) -> None:
        """A model of scores is not compressed."""

    def calibration_rows(self) -> None:
        """There is nothing to compress it for."""
