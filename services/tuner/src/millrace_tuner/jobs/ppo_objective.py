"""Learning what a reward model rewards, with PPO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, Trainer, TrainingArguments
from trl.trainer.utils import add_fused_lm_head

from millrace_tuner.jobs import adapter, policy
from millrace_tuner.jobs.calibration import Rows
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.objective import Criterion
from millrace_tuner.jobs.policy import PromptSampler
from millrace_tuner.jobs.ppo_trainer import PpoTrainer, Scorer
from millrace_tuner.jobs.prompts import Material
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import ProximalPolicy


class PpoObjective:
    """``objective.Objective`` of the method "ppo"."""

    task = "CAUSAL_LM"
    criterion = Criterion("valid_reward_mean", higher_is_better=True)
    names: Mapping[str, str] = {
        "train_reward_mean": "reward",
        "train_reward_std": "reward_std",
        "train_kl": "kl",
        "train_mean_completion_tokens": "completion_tokens",
        "train_policy_loss": "policy_loss",
        "train_value_loss": "value_loss",
        "train_entropy": "entropy",
        "train_clip_fraction": "clip_fraction",
    }

    def __init__(
        self, method: ProximalPolicy, codec: ChatCodec, material: Material, scorer: Scorer
    ) -> None:
        self._method = method
        self._codec = codec
        self._material = material
        self._scorer = scorer
        self._greedy: list[NDArray[np.int32]] = []
        self.counts = policy.counts(material)
        self.longest_tokens = material.longest_prompt + method.maximum_completion_tokens

    def load_model(self, directory: Path) -> PreTrainedModel:
        return adapter.load_base(directory)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps of the optimizer: each batch of prompts takes several."""
        batches = -(-len(self._material.training) // batch_size)
        return batches * self._method.optimization_epochs

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        method, hyperparameters = self._method, run.spec.hyperparameters
        self._pen = policy.pen(self._codec, model, method.maximum_completion_tokens)
        learned = self._policy(run, model)
        pieces = hyperparameters.batch_size // run.micro_batch_size
        return PpoTrainer(
            method=method,
            prompts=self._material.training,
            sampler=PromptSampler(
                [len(prompt.token_ids) for prompt in self._material.training],
                hyperparameters.batch_size,
                run.spec.seed,
                answers=1,
                repeats=method.optimization_epochs * pieces,
            ),
            pen=self._pen,
            scorer=self._scorer,
            precision=run.precision,
            model=learned,
            reference=None if isinstance(learned, PeftModel) else self._reference(run),
            args=TrainingArguments(**run.arguments(), remove_unused_columns=False),
            processing_class=self._codec.tokenizer,
        )

    def _policy(self, run: Run, model: PreTrainedModel) -> Any:
        outputs = ("log_probs", "entropy")
        add_fused_lm_head(model, temperature=self._method.temperature, outputs=outputs)
        configuration = adapter.configuration(run.spec, model, self.task)
        if configuration is None:
            return model
        adapted = get_peft_model(model, configuration)
        if run.spec.hyperparameters.gradient_checkpointing:
            adapted.enable_input_require_grads()
        return adapted

    def _reference(self, run: Run) -> PreTrainedModel:
        """The base once more, where what is trained cannot be switched off."""
        reference = self.load_model(run.spec.base_checkpoint_path / "model")
        add_fused_lm_head(reference, temperature=self._method.temperature)
        reference.requires_grad_(False)
        reference.train(False)
        return reference

    def measure(self, run: Run) -> dict[str, float]:
        """The mean reward of the likeliest answers to held-out prompts."""
        heldout = self._material.heldout
        self._greedy = policy.write(run.model, heldout, self._pen, 0.0, run.precision)
        pairs = zip(heldout, self._greedy, strict=True)
        scores = self._scorer.score([np.concatenate([p.token_ids, a]) for p, a in pairs])
        return {"valid_reward_mean": float(scores.mean())}

    def heldout_stream(self) -> NDArray[Any]:
        """Held-out prompts with the answers that were measured."""
        return policy.stream(self._codec, self._material.heldout, self._greedy)

    def calibration_rows(self) -> Rows:
        return policy.calibration_rows(self._material)
