"""Learning what a grader rewards, with TRL's GRPOTrainer and RLOOTrainer.

GRPO: Shao et al. 2024, arXiv:2402.03300. RLOO: Ahmadian et al. 2024, arXiv:2402.14740. The
trainers get prompts that are already rendered and tokenise them as serving does; nothing of
TRL's own templating decides what the policy is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from millrace_tuner.jobs import adapter, policy
from millrace_tuner.jobs.calibration import Rows
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.grading import Grading
from millrace_tuner.jobs.objective import Criterion
from millrace_tuner.jobs.policy import PromptSampler
from millrace_tuner.jobs.prompts import Material
from millrace_tuner.jobs.training import Run, micro_batch_size
from millrace_tuner.methods import Reinforcement


class _Prompted:
    """What both trainers of TRL are made to do: keep our order and our tokens."""

    def __init__(self, *, codec: ChatCodec, sampler: PromptSampler, **arguments: Any) -> None:
        self._codec = codec
        self._sampler = sampler
        super().__init__(**arguments)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> PromptSampler:
        return self._sampler

    def _tokenize_prompts(
        self, prompts: Sequence[str]
    ) -> tuple[list[list[int]], None, dict[Any, Any]]:
        return self._codec.encode(prompts), None, {}

    def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
        # Frozen layers are held in the precision of training, which TRL does not answer in.
        with self.accelerator.autocast():  # type: ignore[attr-defined]
            return super()._generate_single_turn(*arguments, **named)  # type: ignore[misc]


class PromptedGrpo(_Prompted, GRPOTrainer):
    """GRPO."""


class PromptedRloo(_Prompted, RLOOTrainer):
    """RLOO."""


_TRAINERS: dict[str, tuple[Callable[..., Trainer], Callable[..., TrainingArguments]]] = {
    "grpo": (PromptedGrpo, GRPOConfig),
    "rloo": (PromptedRloo, RLOOConfig),
}


class ReinforcementObjective:
    """``objective.Objective`` of the method "reinforcement"."""

    task = "CAUSAL_LM"
    criterion = Criterion("valid_reward_mean", higher_is_better=True)
    names: Mapping[str, str] = {
        "train_reward_mean": "reward",
        "train_reward_std": "reward_std",
        "train_kl": "kl",
        "train_mean_completion_tokens": "completions/mean_length",
        "train_grader_error_rate": "grader_error_rate",
    }

    def __init__(
        self, method: Reinforcement, codec: ChatCodec, material: Material, grading: Grading
    ) -> None:
        self._method = method
        self._codec = codec
        self._material = material
        self._grading = grading
        self._greedy: list[NDArray[np.int32]] | None = None
        self.counts = policy.counts(material)
        self.longest_tokens = material.longest_prompt + method.maximum_completion_tokens

    def load_model(self, directory: Path) -> PreTrainedModel:
        return adapter.load_base(directory)

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-len(self._material.training) // batch_size)

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        method = self._method
        self._pen = policy.pen(self._codec, model, method.maximum_completion_tokens)
        batch_size = run.spec.hyperparameters.batch_size
        answers = batch_size * method.samples_per_prompt
        micro = self._micro_batch_size(run, answers)
        make, configure = _TRAINERS[method.algorithm]
        prompts = self._material.training
        trainer = make(
            codec=self._codec,
            sampler=PromptSampler(
                [len(prompt.token_ids) for prompt in prompts],
                batch_size,
                run.spec.seed,
                answers=method.samples_per_prompt,
                repeats=answers // micro,
            ),
            model=model,
            reward_funcs=self._rewards,
            args=configure(
                **{
                    **run.arguments(),
                    "per_device_train_batch_size": micro,
                    "gradient_accumulation_steps": answers // micro,
                    "num_generations": method.samples_per_prompt,
                    "max_completion_length": method.maximum_completion_tokens,
                    "temperature": method.temperature,
                    "beta": method.beta,
                }
            ),
            train_dataset=Dataset.from_dict(
                {"prompt": [p.text for p in prompts], "place": list(range(len(prompts)))}
            ),
            processing_class=self._codec.tokenizer,
            peft_config=adapter.configuration(run.spec, model, self.task),
        )
        if method.evaluation_interval:
            trainer.add_callback(Interval(run, method.evaluation_interval))  # type: ignore[no-untyped-call]
        self._run = run
        return trainer

    def _micro_batch_size(self, run: Run, answers: int) -> int:
        of_answers = replace(run.spec.hyperparameters, batch_size=answers)
        spec = run.spec.model_copy(update={"hyperparameters": of_answers})
        return micro_batch_size(spec, self.longest_tokens)

    def _rewards(
        self,
        *,
        completions: Sequence[str],
        place: Sequence[int],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """TRL's reward function; answers to one prompt stand side by side."""
        prompts = [self._material.training[index] for index in place]
        graded = self._grading.grade(prompts, completions)
        log_metric("grader_error_rate", graded.error_rate)
        return graded.rewards

    def measure(self, run: Run) -> dict[str, float]:
        """The mean reward of the answers to held-out prompts: the likeliest one, or several
        that are drawn with the same random numbers each time."""
        samples = self._method.evaluation_samples
        prompts = [p for p in self._material.heldout for _ in range(samples)]
        temperature = 0.0 if samples == 1 else self._method.temperature
        with torch.random.fork_rng():
            torch.manual_seed(run.spec.seed)
            answers = policy.write(run.model, prompts, self._pen, temperature, run.precision)
        self._greedy = answers if samples == 1 else None
        graded = self._grading.grade(prompts, policy.texts(self._codec, answers))
        return {
            "valid_reward_mean": float(np.mean(graded.rewards)),
            "valid_grader_error_rate": graded.error_rate,
        }

    def heldout_stream(self) -> NDArray[Any]:
        """Held-out prompts with the policy's likeliest answers: there are no others."""
        heldout = self._material.heldout
        run = self._run
        answers = self._greedy or policy.write(run.model, heldout, self._pen, 0.0, run.precision)
        return policy.stream(self._codec, heldout, answers)

    def calibration_rows(self) -> Rows:
        return policy.calibration_rows(self._material)


class Interval(TrainerCallback):
    """Measures between the ends of epochs too, every so many steps.

    What it finds is kept in the trainer's history, from which a resumed job rewrites its file.
    """

    def __init__(self, run: Run, steps: int) -> None:
        self._run = run
        self._steps = steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        run, step = self._run, state.global_step
        is_epoch_end = step % run.steps_per_epoch == 0  # measured in any case
        if step % self._steps or is_epoch_end or run.cancellation.requested:
            return
        line = {"step": step, **run.objective.measure(run)}
        state.log_history.append(line)
        run.metrics.append(line)
        run.log_to_tracking(line)
