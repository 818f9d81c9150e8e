"""The methods of tuning, and what each can be told. Standard library only.

The service fixes a method in a job's plan, and the job's subprocess reads the same values from
its specification. The defaults are those of the papers or of TRL, whichever is named.
"""

from dataclasses import dataclass
from typing import Literal

AdapterKind = Literal[
    "lora",
    "dora",
    "rslora",
    "adalora",
    "loha",
    "lokr",
    "ia3",
    "prompt",
    "prefix",
    "bottleneck",
    "none",
]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PreferenceLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]

LOW_RANK = frozenset(("lora", "dora", "rslora", "adalora", "loha", "lokr"))
NOT_MERGED = frozenset(("prompt", "prefix", "bottleneck"))


@dataclass(frozen=True)
class Adapter:
    """What is trained beside or instead of the base's own weights.

    Attributes:
        kind: "lora" (Hu et al. 2021, arXiv:2106.09685: weights change by ``alpha / rank * B @
            A``), "dora" (Liu et al. 2024, arXiv:2402.09353), "rslora" (Kalajdzievski 2023,
            arXiv:2312.03732), "adalora" (Zhang et al. 2023, arXiv:2303.10512), "loha" (Hyeon-Woo
            et al. 2021, arXiv:2108.06098), "lokr" (Edalati et al. 2022, arXiv:2212.10650), "ia3"
            (Liu et al. 2022, arXiv:2205.05638), "prompt" (Lester et al. 2021, arXiv:2104.08691),
            "prefix" (Li and Liang 2021, arXiv:2101.00190), "bottleneck" (Houlsby et al. 2019,
            arXiv:1902.00751), "none": all weights are trained.
        rank: of low-rank kinds; of "bottleneck" its width.
        target_modules: last parts of the names of the linear layers that are adapted; empty: all.
        full_modules: modules that are trained whole beside the adapter (the mixed strategy).
        virtual_tokens: length of a prompt or prefix.
        quantized_base: whether the frozen base is held in four bits while training (QLoRA,
            Dettmers et al. 2023, arXiv:2305.14314).
    """

    kind: AdapterKind = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    full_modules: tuple[str, ...] = ()
    virtual_tokens: int = 16
    quantized_base: bool = False


@dataclass(frozen=True)
class Hyperparameters:
    """How training goes, whatever the method; every "auto" is resolved.

    Attributes:
        batch_size: examples an optimizer step (reinforcement: prompts).
        learning_rate_multiplier: of the method's own rate (``hyperparameters.py``).
        maximum_sequence_tokens: longer examples are cut; 0: the base's context.
        early_stopping_patience: epochs without a lower validation loss until training ends,
            the best epoch's checkpoint being the final one; 0: never.
        gradient_checkpointing: computes activations again instead of keeping them.
        zero_stage: of DeepSpeed ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054); 0: without it.
    """

    epochs: int
    batch_size: int
    learning_rate_multiplier: float
    maximum_sequence_tokens: int = 0
    early_stopping_patience: int = 0
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    zero_stage: int = 0


@dataclass(frozen=True)
class Supervised:
    """Learn the assistant's answers.

    ``packing`` puts several examples into one sequence, none of which sees another.
    """

    packing: bool = True
    kind: Literal["supervised"] = "supervised"


@dataclass(frozen=True)
class DirectPreference:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290) and its losses, as TRL names them.

    ``label_smoothing`` is the share of pairs that are taken for swapped, of the losses "robust",
    "exo_pair", "aot" and "aot_unpaired" (``contradiction``).
    """

    loss: PreferenceLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    kind: Literal["dpo"] = "dpo"


@dataclass(frozen=True)
class KahnemanTversky:
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306): answers that are good or bad, unpaired."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kind: Literal["kto"] = "kto"


@dataclass(frozen=True)
class OddsRatio:
    """ORPO (Hong et al. 2024, arXiv:2403.07691); ``beta`` is the paper's lambda."""

    beta: float = 0.1
    kind: Literal["orpo"] = "orpo"


@dataclass(frozen=True)
class RewardModel:
    """A model that scores answers (Bradley-Terry), learned from preferences.

    ``center_coefficient`` pulls the mean reward to zero (Eisenstein et al. 2023,
    arXiv:2312.09244); 0: it is left where it falls.
    """

    center_coefficient: float = 0.0
    kind: Literal["reward"] = "reward"


@dataclass(frozen=True)
class Reinforcement:
    """GRPO (Shao et al. 2024, arXiv:2402.03300) or RLOO (Ahmadian et al. 2024,
    arXiv:2402.14740), with rewards from a grader.

    Attributes:
        grader: as JSON, in the OpenAI API's form.
        samples_per_prompt: answers that are compared with one another.
        beta: weight of the divergence from the base.
        evaluation_samples: answers to each held-out prompt.
        evaluation_interval: optimizer steps between measurements; 0: once an epoch.
    """

    grader: str
    algorithm: Literal["grpo", "rloo"] = "grpo"
    samples_per_prompt: int = 8
    temperature: float = 1.0
    maximum_completion_tokens: int = 256
    beta: float = 0.0
    evaluation_samples: int = 1
    evaluation_interval: int = 0
    kind: Literal["reinforcement"] = "reinforcement"


@dataclass(frozen=True)
class ProximalPolicy:
    """PPO with a value head (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022,
    arXiv:2203.02155), with rewards from a reward model.

    ``reward_model`` names a job of the method "reward", or the model that it made.
    """

    reward_model: str
    clip_range: float = 0.2
    value_coefficient: float = 0.1
    divergence_coefficient: float = 0.05
    discount: float = 1.0
    advantage_decay: float = 0.95
    optimization_epochs: int = 4
    temperature: float = 1.0
    maximum_completion_tokens: int = 64
    kind: Literal["ppo"] = "ppo"


@dataclass(frozen=True)
class Distillation:
    """Learn a teacher's distributions (Agarwal et al. 2023, arXiv:2306.13649).

    Attributes:
        teacher: a model, version or alias with the base's vocabulary.
        temperature: both models' logits are divided by it.
        interpolation: 0 is the forward divergence, 1 the reverse one, between them the
            generalised Jensen-Shannon divergence.
        own_answers: share of batches whose answers the student writes itself.
    """

    teacher: str
    temperature: float = 1.0
    interpolation: float = 0.0
    own_answers: float = 0.0
    kind: Literal["distillation"] = "distillation"


@dataclass(frozen=True)
class ContinuedPretraining:
    """Learn plain text, without forgetting (Ibrahim et al. 2024, arXiv:2403.08763).

    ``replay_fraction`` of the tokens are of the data that the base was trained on (None: 0.05
    where that data is known, which it is not of a tuned base). The learning rate is warmed up
    anew over ``warmup_fraction`` of the steps and decays as a cosine.
    """

    replay_fraction: float | None = None
    warmup_fraction: float = 0.05
    kind: Literal["pretraining"] = "pretraining"


@dataclass(frozen=True)
class Classification:
    """A head that tells classes apart; the classes are the labels of the training file."""

    kind: Literal["classification"] = "classification"


@dataclass(frozen=True)
class SequenceToSequence:
    """Learn targets from sources with an encoder and a decoder (Raffel et al. 2019,
    arXiv:1910.10683)."""

    kind: Literal["sequence"] = "sequence"


Method = (
    Supervised
    | DirectPreference
    | KahnemanTversky
    | OddsRatio
    | RewardModel
    | Reinforcement
    | ProximalPolicy
    | Distillation
    | ContinuedPretraining
    | Classification
    | SequenceToSequence
)

FEWEST_FOR_KTO = 2
"""Answers in a batch, each of which is held against another's prompt."""

_SMOOTHED_LOSSES = frozenset(("robust", "exo_pair", "aot", "aot_unpaired"))


def contradiction(method: Method) -> str | None:
    """What two of a method's parameters say against one another, in words for its user."""
    if not isinstance(method, DirectPreference):
        return None
    if method.loss == "exo_pair" and not method.label_smoothing:
        return "the loss exo_pair needs label_smoothing above 0; its paper recommends 0.001"
    if method.label_smoothing and method.loss not in _SMOOTHED_LOSSES:
        known = ", ".join(sorted(_SMOOTHED_LOSSES))
        return f"the loss {method.loss} has no label_smoothing; of the losses, {known} have"
    return None


# Their models are not text generators of the kind that the engines serve: the job has
# succeeded once the final checkpoint is committed.
NOT_SERVED = frozenset(("reward", "classification", "sequence"))


def is_served(method: Method, adapter: Adapter) -> bool:
    """Whether what a job makes is compressed and rolled out."""
    return method.kind not in NOT_SERVED and adapter.kind not in NOT_MERGED
