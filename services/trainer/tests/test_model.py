"""The model that a run begins with."""

from pathlib import Path

import pytest
import torch
from tiny_run import ARCHITECTURE, VOCABULARY_SIZE, spec_of, write_dataset

from millrace_runtime.jobs import JobError
from millrace_trainer.jobs import model
from millrace_trainer.jobs.specification import Spec


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return write_dataset(tmp_path_factory.mktemp("model"))


def spec(dataset: tuple[Path, str], initial: Path | None = None, seed: int = 7) -> Spec:
    changes = {"initial_checkpoint_path": str(initial), "initial_checkpoint_digest": "sha256:0"}
    made = spec_of(
        dataset, Path("output"), hyperparameters={"seed": seed}, **(changes if initial else {})
    )
    return Spec.model_validate(made)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def saved(network: torch.nn.Module, dataset: tuple[Path, str], folder: Path) -> Path:
    network.save_pretrained(folder / "model")
    content = (dataset[0] / "tokenizer" / "tokenizer.json").read_bytes()
    (folder / "model" / "tokenizer.json").write_bytes(content)
    return folder


def test_random_weights_are_the_seeds(dataset: tuple[Path, str]) -> None:
    first, again, other = (weights(model.build(spec(dataset, seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_initial_checkpoint_gives_its_weights(dataset: tuple[Path, str], tmp_path: Path) -> None:
    trained = model.build(spec(dataset, seed=3))
    begun = model.build(spec(dataset, saved(trained, dataset, tmp_path), seed=4))
    assert torch.equal(weights(begun), weights(trained))


def test_another_tokenizers_checkpoint_is_refused(
    dataset: tuple[Path, str], tmp_path: Path
) -> None:
    initial = saved(model.build(spec(dataset)), dataset, tmp_path)
    (initial / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(JobError) as raised:
        model.build(spec(dataset, initial))
    assert raised.value.reason == "TOKENIZER_MISMATCH"


def test_operations_are_counted_as_palm_does(dataset: tuple[Path, str]) -> None:
    made = spec(dataset)
    network = model.build(made)
    assert network.config.vocab_size == VOCABULARY_SIZE
    layers, hidden, length = (
        ARCHITECTURE[key] for key in ("layers", "hidden_size", "context_length")
    )
    expected = 6 * weights(network).numel() + 12 * layers * hidden * length
    assert model.flops_per_token(network, made.architecture) == expected


def test_the_default_model_has_four_to_eight_million_parameters() -> None:
    """With the default vocabulary, 4,096."""
    architecture = Spec.model_fields["architecture"].default
    hidden, inner, heads = (
        architecture.hidden_size,
        architecture.intermediate_size,
        architecture.head_size,
    )
    attention = 2 * hidden * heads * (architecture.attention_heads + architecture.key_value_heads)
    total = 4096 * hidden + architecture.layers * (attention + 3 * hidden * inner)
    assert 4e6 < total < 8e6
