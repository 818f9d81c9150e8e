"""Learning plain text in full windows, some of them of the data that the base has learned.

The schedule is that of Ibrahim et al. 2024 (arXiv:2403.08763, section 4): the learning rate is
warmed up anew to its peak and decays as a cosine to a tenth of it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_config import SFTConfig

from millrace_tuner.jobs import adapter, examples, text_windows
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.supervised_objective import (
    Material,
    OrderedTrainer,
    SupervisedObjective,
    dataset,
)
from millrace_tuner.jobs.text_windows import NewWindows
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import ContinuedPretraining

_LOWEST_RATE = 0.1  # of the peak


class PretrainingObjective(SupervisedObjective):
    """``objective.Objective`` of the method "pretraining"."""

    def __init__(
        self,
        codec: ChatCodec,
        method: ContinuedPretraining,
        new: NewWindows,
        replayed: Sequence[Example],
    ) -> None:
        training = [*new.training, *replayed]
        super().__init__(codec, Material(training, new.heldout, new.heldout_source, 0, 0))
        self._method = method

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        training, spec = self._material.training, run.spec
        lengths = [len(window.token_ids) for window in training]
        return OrderedTrainer(
            sampler=EpochSampler(lengths, spec.hyperparameters.batch_size, spec.seed),
            model=model,
            args=SFTConfig(
                **self._arguments(run),
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=dataset(training),
            processing_class=self._codec.tokenizer,
            peft_config=adapter.configuration(spec, model, self.task),
        )

    def _arguments(self, run: Run) -> dict[str, Any]:
        return {
            **run.arguments(),
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": _LOWEST_RATE},
            "warmup_steps": math.ceil(run.total_steps * self._method.warmup_fraction),
        }

    def heldout_stream(self) -> NDArray[Any]:
        """Held-out windows of the new text, one behind the other."""
        joined = np.concatenate([window.token_ids for window in self._material.heldout])
        tokenizer = self._codec.tokenizer
        whole = [text_windows.window(joined)]
        return examples.heldout_stream(whole, tokenizer.eos_token_id, len(tokenizer))
