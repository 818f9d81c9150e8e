"""Tuning by rewards from a reward model, with PPO: ``python -m millrace_tuner.jobs.ppo``.

Reads a base checkpoint, a file of prompts and the checkpoint of a reward model
(``jobs.reward``), and makes more likely what that model rewards, staying near the base. A
checkpoint is committed at the end of every epoch, which is a pass over the prompts.

Answers, dropout and order are drawn from the seed, and where the numbers stand is part of the
state, as are the batch in hand and the value head: killed and resumed, the job ends with the
same bytes.

Lines on standard output: as of ``jobs.supervised``; a step is one of the optimizer, of which
each batch of prompts takes ``optimization_epochs``. Its metrics are train_loss,
train_reward_mean, train_reward_std, train_kl, train_mean_completion_tokens, train_policy_loss,
train_value_loss, train_entropy, train_clip_fraction and learning_rate. Held-out prompts give
valid_reward_mean.

Reasons of failure: those of ``jobs.supervised`` and WRONG_FORMAT, REWARD_MODEL_INVALID (damaged),
REWARD_MODEL_UNSUITABLE (no reward model, or one with other tokens).
"""

import json
from pathlib import Path

from millrace_examples.kinds import Task
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import flow, prompts, reading
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import ProximalPolicy


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def method_of(spec: Spec) -> ProximalPolicy:
    if not isinstance(spec.method, ProximalPolicy):
        raise JobError("INVALID_SPEC", f"method.kind is {spec.method.kind}, not ppo")
    return spec.method


def verify_reward_model(spec: Spec) -> Path:
    """The reward model's checkpoint, every byte as it was committed.

    Raises:
        JobError: INVALID_SPEC, REWARD_MODEL_INVALID; REWARD_MODEL_UNSUITABLE when its tokens
            are not the base's.
    """
    if spec.companion_path is None or spec.companion_digest is None:
        raise JobError("INVALID_SPEC", "companion_path and companion_digest must be given")
    try:
        manifest.verify(spec.companion_path, spec.companion_digest)
    except manifest.ManifestError as error:
        message = f"the reward model is not what it was: {error}; restore it or name another"
        raise JobError("REWARD_MODEL_INVALID", message) from error
    if _vocabulary(spec.companion_path) != _vocabulary(spec.base_checkpoint_path):
        message = (
            "the reward model reads other tokens than the base writes; train it on a model with "
            "the base's tokenizer"
        )
        raise JobError("REWARD_MODEL_UNSUITABLE", message)
    return spec.companion_path


def _vocabulary(checkpoint: Path) -> object:
    """What gives text its ids; what pads or cuts it does not matter here."""
    document = json.loads((checkpoint / "model" / "tokenizer.json").read_text())
    names = ("model", "added_tokens", "normalizer", "pre_tokenizer")
    return {name: document.get(name) for name in names}


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    method = method_of(spec)
    training, validation = reading.files(spec, Task)
    reward_model = verify_reward_model(spec)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.codec import load_codec
    from millrace_tuner.jobs.ppo_objective import PpoObjective
    from millrace_tuner.jobs.reward_scorer import RewardScorer
    from millrace_tuner.jobs.training import Run

    codec = load_codec(spec.base_checkpoint_path / "model")
    total = len(training) + len(validation or ())
    material = prompts.prepare(
        training,
        validation,
        codec,
        sequence_tokens=reading.sequence_limit(spec),
        answer_tokens=method.maximum_completion_tokens,
        on_progress=prompts.progress(reporter, cancellation, total),
    )
    objective = PpoObjective(method, codec, material, RewardScorer(reward_model))
    Run(spec, objective, codec.tokenizer, reporter, cancellation).train()


if __name__ == "__main__":
    jobs.run("tuner.ppo", Spec, work, lambda spec: spec.output_directory)
