"""Learning from compared and from judged answers: DPO and its losses, ORPO, KTO.

What DPO and KTO hold a model against is the base: with an adapter of PEFT's, the model itself
with the adapter switched off, else a frozen copy. Its log-probabilities are computed with each
batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, Trainer
from trl.experimental.orpo import ORPOConfig
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.kto_config import KTOConfig
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import adapter, examples, preference_measures
from millrace_tuner.jobs.calibration import Rows
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.objective import Counts, Criterion
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.preference_batches import (
    ComparedCollator,
    JudgedCollator,
    compared_row,
    judged_row,
)
from millrace_tuner.jobs.preference_examples import Compared, EncodedT, Material, Verdict
from millrace_tuner.jobs.preference_trainers import (
    DirectTrainer,
    JudgedTrainer,
    OddsRatioTrainer,
)
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import (
    FEWEST_FOR_KTO,
    DirectPreference,
    KahnemanTversky,
    OddsRatio,
)


class _PreferenceObjective(Generic[EncodedT]):
    """What the objectives below have in common."""

    task = "CAUSAL_LM"
    criterion = Criterion()
    names: Mapping[str, str] = {
        "train_reward_accuracy": "rewards/accuracies",
        "train_reward_margin": "rewards/margins",
    }

    def __init__(self, codec: ChatCodec, material: Material[EncodedT]) -> None:
        self._codec = codec
        self._material = material
        self.counts = Counts(**material.counts)

    def load_model(self, directory: Path) -> PreTrainedModel:
        """The base, without the dropout of its own; an adapter's is as it was asked."""
        model = adapter.load_base(directory)
        disable_dropout_in_model(model)
        return model

    def steps_per_epoch(self, batch_size: int) -> int:
        return math.ceil(len(self._material.training) / batch_size)

    def _trainer_arguments(
        self, run: Run, model: PreTrainedModel, row: Callable[[EncodedT], dict[str, Any]]
    ) -> dict[str, Any]:
        training = self._material.training
        lengths = [example.longest_tokens for example in training]
        return {
            "sampler": EpochSampler(lengths, run.spec.hyperparameters.batch_size, run.spec.seed),
            "model": model,
            "train_dataset": Dataset.from_list([row(example) for example in training]),
            "processing_class": self._codec.tokenizer,
            "peft_config": adapter.configuration(run.spec, model, self.task),
        }

    def _reference(self, run: Run) -> PreTrainedModel | None:
        """A frozen copy of the base, where there is no adapter that can be switched off."""
        if run.spec.adapter.kind not in ("none", "bottleneck"):
            return None
        return self.load_model(run.spec.base_checkpoint_path / "model").requires_grad_(False)

    def _stream(self, answers: Sequence[Example]) -> NDArray[Any]:
        tokenizer = self._codec.tokenizer
        return examples.heldout_stream(answers, tokenizer.eos_token_id, len(tokenizer))


class ComparedObjective(_PreferenceObjective[Compared]):
    """``objective.Objective`` of the methods "dpo" and "orpo"."""

    def __init__(
        self,
        codec: ChatCodec,
        material: Material[Compared],
        method: DirectPreference | OddsRatio,
    ) -> None:
        super().__init__(codec, material)
        self._method = method
        self._collate = ComparedCollator(codec.tokenizer.pad_token_id)
        self.longest_tokens = 2 * material.longest_tokens  # both answers share a forward pass

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        arguments = self._trainer_arguments(run, model, compared_row)
        arguments["data_collator"] = self._collate
        if isinstance(self._method, OddsRatio):
            add_fused_lm_head(model, outputs=("log_probs", "mean_logits"))
            return OddsRatioTrainer(args=self._odds_ratio_config(run, self._method), **arguments)
        config = DPOConfig(
            **_arguments(run),
            max_length=None,
            loss_type=[self._method.loss],
            beta=self._method.beta,
            label_smoothing=self._method.label_smoothing,
        )
        return DirectTrainer(args=config, ref_model=self._reference(run), **arguments)

    def _odds_ratio_config(self, run: Run, method: OddsRatio) -> ORPOConfig:
        return ORPOConfig(**_arguments(run), max_length=self.longest_tokens, beta=method.beta)

    def measure(self, run: Run) -> dict[str, float]:
        return preference_measures.of_pairs(run, self._material.heldout, self._collate)

    def heldout_stream(self) -> NDArray[Any]:
        """The held-out prompts, each with the answer that was preferred."""
        return self._stream([example.preferred for example in self._material.heldout])

    def calibration_rows(self) -> Rows:
        """The prompts, each with the answer that was preferred."""
        training, heldout = self._material.training, self._material.heldout
        return Rows(
            [example.preferred.token_ids for example in training],
            [example.preferred.token_ids for example in heldout],
        )


class JudgedObjective(_PreferenceObjective[Verdict]):
    """``objective.Objective`` of the method "kto"."""

    def __init__(
        self, codec: ChatCodec, material: Material[Verdict], method: KahnemanTversky
    ) -> None:
        super().__init__(codec, material)
        self._method = method
        self.longest_tokens = material.longest_tokens
        self._collate = JudgedCollator(codec.tokenizer.pad_token_id, self.longest_tokens)

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        """
        Raises:
            JobError: BATCH_TOO_SMALL.
        """
        _require_two_together(run)
        config = KTOConfig(
            **_arguments(run),
            max_length=None,
            beta=self._method.beta,
            desirable_weight=self._method.desirable_weight,
            undesirable_weight=self._method.undesirable_weight,
        )
        return JudgedTrainer(
            args=config,
            ref_model=self._reference(run),
            data_collator=self._collate,
            **self._trainer_arguments(run, model, judged_row),
        )

    def measure(self, run: Run) -> dict[str, float]:
        return preference_measures.of_verdicts(run, self._material.heldout, self._collate)

    def heldout_stream(self) -> NDArray[Any]:
        """The held-out prompts with their good answers; with the bad ones if none is good."""
        heldout = self._material.heldout
        good = [example.answer for example in heldout if example.is_good]
        return self._stream(good or [example.answer for example in heldout])

    def calibration_rows(self) -> Rows:
        """The prompts with their good answers: the bad ones are not what it is to say."""
        training, heldout = self._material.training, self._material.heldout
        return Rows(
            [example.answer.token_ids for example in training if example.is_good],
            [example.answer.token_ids for example in heldout],
        )


def _arguments(run: Run) -> dict[str, Any]:
    return {**run.arguments(), "remove_unused_columns": False, "disable_dropout": False}


def _require_two_together(run: Run) -> None:
    if run.micro_batch_size < FEWEST_FOR_KTO:
        message = (
            "KTO holds the answers of a batch against one another's prompts, and only one of "
            f"these examples fits a forward pass (batch_size is "
            f"{run.spec.hyperparameters.batch_size}); choose an even batch_size, or a lower "
            "maximum_sequence_tokens"
        )
        raise JobError("BATCH_TOO_SMALL", message)
