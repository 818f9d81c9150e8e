"""What "auto" means. Pure: from the number of examples and what the user did say.

The rules are those that OpenAI documents for its fine-tuning API: epochs so that small sets are
seen often enough (cookbook, "Data preparation and analysis for chat model fine-tuning"), a
batch of about 0.2 % of the examples up to 256 (fine-tuning guide), a multiplier of 1. Batches
have eight examples where that leaves ten steps an epoch: on CPUs smaller ones only cost time.
"""

from millrace_tuner.domain import Adapter, Hyperparameters

# Of a low-rank adapter, at multiplier 1. It is about ten times that of full fine-tuning, and
# falls with the model's width (Schulman et al. 2025, "LoRA Without Regret"); this one suits
# models of a few million parameters. For wider ones the multiplier is the place to say less.
BASE_LEARNING_RATE = 2e-3

AUTO = Hyperparameters(epochs=0, batch_size=0, learning_rate_multiplier=0.0)
DEFAULT_ADAPTER = Adapter(rank=16, alpha=32.0, dropout=0.0)

_TARGET_EPOCHS = 3
_MAXIMUM_AUTO_EPOCHS = 25
_FEWEST_EXAMPLES_SEEN = 100
_MOST_EXAMPLES_SEEN = 25_000
_BATCH_FRACTION = 0.002
_LARGEST_AUTO_BATCH = 256
_USEFUL_BATCH = 8
_FEWEST_STEPS = 10


def resolve(example_count: int, asked: Hyperparameters) -> Hyperparameters:
    """``asked`` with every 0 replaced by what fits ``example_count`` examples."""
    return Hyperparameters(
        epochs=asked.epochs or auto_epochs(example_count),
        batch_size=asked.batch_size or auto_batch_size(example_count),
        learning_rate_multiplier=asked.learning_rate_multiplier or 1.0,
    )


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
    return Adapter(rank, asked.alpha or 2.0 * rank, asked.dropout)


def learning_rate(hyperparameters: Hyperparameters) -> float:
    return BASE_LEARNING_RATE * hyperparameters.learning_rate_multiplier
