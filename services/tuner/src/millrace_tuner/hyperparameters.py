"""What "auto" means. Pure: from the method, the number of examples and what the user did say.

The rules are those that OpenAI documents for its fine-tuning API: epochs so that small sets are
seen often enough (cookbook, "Data preparation and analysis for chat model fine-tuning"), a
batch of about 0.2 % of the examples up to 256 (fine-tuning guide), a multiplier of 1. Batches
have eight examples where that leaves ten steps an epoch: on CPUs smaller ones only cost time.
"""

from dataclasses import replace

from millrace_tuner.methods import (
    FEWEST_FOR_KTO,
    LOW_RANK,
    Adapter,
    ContinuedPretraining,
    Hyperparameters,
    Method,
    Supervised,
)

# Of a low-rank adapter, at multiplier 1. It is about ten times that of full fine-tuning, and
# falls with the model's width (Schulman et al. 2025, "LoRA Without Regret"); this one suits
# models of a few million parameters. For wider ones the multiplier is the place to say less.
BASE_LEARNING_RATE = 2e-3

AUTO = Hyperparameters(epochs=0, batch_size=0, learning_rate_multiplier=0.0)
DEFAULT_ADAPTER = Adapter()
DEFAULT_METHOD = Supervised()
REPLAY_FRACTION = 0.05

_FULL_TRAINING = 0.1
_VECTORS = 5.0
# Preferences and rewards move a model that can do its work already: the papers take a tenth of
# the supervised rate or less.
_SHARE_OF_METHOD = {"dpo": 0.1, "kto": 0.1, "orpo": 0.5, "reinforcement": 0.1, "ppo": 0.1}

_TARGET_EPOCHS = 3
_MAXIMUM_AUTO_EPOCHS = 25
_FEWEST_EXAMPLES_SEEN = 100
_MOST_EXAMPLES_SEEN = 25_000
_BATCH_FRACTION = 0.002
_LARGEST_AUTO_BATCH = 256
_USEFUL_BATCH = 8
_FEWEST_STEPS = 10
_ONE_EPOCH = frozenset(("dpo", "reinforcement", "ppo", "pretraining"))


def resolve(method: Method, example_count: int, asked: Hyperparameters) -> Hyperparameters:
    """``asked`` with every 0 replaced by what fits the method and ``example_count`` examples."""
    few = 1 if method.kind in _ONE_EPOCH else auto_epochs(example_count)
    fewest = FEWEST_FOR_KTO if method.kind == "kto" else 1
    return replace(
        asked,
        epochs=asked.epochs or few,
        batch_size=asked.batch_size or max(auto_batch_size(example_count), fewest),
        learning_rate_multiplier=asked.learning_rate_multiplier or 1.0,
    )


def resolve_method(method: Method, base_model: str) -> Method:
    """``method`` with its own choices made: a tuned base's training data are not kept to replay."""
    if not isinstance(method, ContinuedPretraining) or method.replay_fraction is not None:
        return method
    is_tuned = base_model.startswith("ft:")
    return replace(method, replay_fraction=0.0 if is_tuned else REPLAY_FRACTION)


def auto_epochs(example_count: int) -> int:
    """Three, more for few examples (until 100 are seen, 25 at most), fewer for very many."""
    count = max(example_count, 1)
    if count * _TARGET_EPOCHS < _FEWEST_EXAMPLES_SEEN:
        return min(_MAXIMUM_AUTO_EPOCHS, _FEWEST_EXAMPLES_SEEN // count)
    if count * _TARGET_EPOCHS > _MOST_EXAMPLES_SEEN:
        return max(1, _MOST_EXAMPLES_SEEN // count)
    return _TARGET_EPOCHS


def auto_batch_size(example_count: int) -> int:
    share = round(example_count * _BATCH_FRACTION)
    useful = min(_USEFUL_BATCH, example_count // _FEWEST_STEPS)
    return min(max(share, useful, 1), _LARGEST_AUTO_BATCH)


def resolve_adapter(asked: Adapter | None) -> Adapter:
    """The default adapter, or ``asked`` with a rank and alpha where it has none (alpha: twice
    the rank)."""
    if asked is None:
        return DEFAULT_ADAPTER
    rank = asked.rank or DEFAULT_ADAPTER.rank
    return replace(
        asked,
        rank=rank,
        alpha=asked.alpha or 2.0 * rank,
        virtual_tokens=asked.virtual_tokens or DEFAULT_ADAPTER.virtual_tokens,
    )


def learning_rate(method: Method, adapter: Adapter, hyperparameters: Hyperparameters) -> float:
    """The peak rate: the base rate by what is trained, by how, and by what the user says."""
    if adapter.kind == "none":
        part = _FULL_TRAINING
    elif adapter.kind in LOW_RANK or adapter.kind == "bottleneck":
        part = 1.0
    else:
        part = _VECTORS  # a few vectors must move further to say as much
    share = _SHARE_OF_METHOD.get(method.kind, 1.0)
    return BASE_LEARNING_RATE * part * share * hyperparameters.learning_rate_multiplier
