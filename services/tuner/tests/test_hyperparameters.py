import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_tuner import hyperparameters
from millrace_tuner.methods import (
    Adapter,
    ContinuedPretraining,
    DirectPreference,
    Hyperparameters,
    Supervised,
)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch_size"),
    [
        (2, 25, 1),
        (10, 10, 1),
        (33, 3, 3),
        (34, 3, 3),
        (200, 3, 8),
        (8_000, 3, 16),
        (10_000, 2, 20),
        (1_000_000, 1, 256),
    ],
)
def test_auto_follows_the_number_of_examples(examples: int, epochs: int, batch_size: int) -> None:
    resolved = hyperparameters.resolve(Supervised(), examples, hyperparameters.AUTO)
    assert resolved == Hyperparameters(epochs, batch_size, 1.0)


@given(st.integers(0, 10**7))
def test_auto_always_gives_what_the_contract_allows(examples: int) -> None:
    resolved = hyperparameters.resolve(Supervised(), examples, hyperparameters.AUTO)
    assert 1 <= resolved.epochs <= 50
    assert 1 <= resolved.batch_size <= 256


def test_what_the_user_says_stands() -> None:
    asked = Hyperparameters(7, 3, 0.5)
    assert hyperparameters.resolve(Supervised(), 200, asked) == asked
    rate = hyperparameters.learning_rate(Supervised(), Adapter(), asked)
    assert rate == 0.5 * hyperparameters.BASE_LEARNING_RATE


def test_all_weights_learn_slower_than_an_adapter_and_preferences_slower_than_answers() -> None:
    asked = Hyperparameters(1, 8, 1.0)
    adapted = hyperparameters.learning_rate(Supervised(), Adapter(), asked)
    assert hyperparameters.learning_rate(Supervised(), Adapter(kind="none"), asked) < adapted
    assert hyperparameters.learning_rate(DirectPreference(), Adapter(), asked) < adapted


def test_an_adapter_is_completed() -> None:
    assert hyperparameters.resolve_adapter(None) == Adapter(rank=16, alpha=32.0)
    asked = Adapter(rank=4, alpha=0.0, dropout=0.1)
    assert hyperparameters.resolve_adapter(asked) == Adapter(rank=4, alpha=8.0, dropout=0.1)
    unsaid = Adapter(rank=0, alpha=0.0, virtual_tokens=0)
    assert hyperparameters.resolve_adapter(unsaid) == Adapter()


def test_the_data_of_a_tuned_base_is_not_there_to_be_replayed() -> None:
    asked = ContinuedPretraining()
    assert hyperparameters.resolve_method(asked, "demo") == ContinuedPretraining(0.05)
    assert hyperparameters.resolve_method(asked, "ft:demo:acme::x") == ContinuedPretraining(0.0)
    wanted = ContinuedPretraining(0.5)
    assert hyperparameters.resolve_method(wanted, "ft:demo:acme::x") == wanted
