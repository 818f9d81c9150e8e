"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751), of which PEFT has none.

After the last linear layer of every attention and of every feed-forward block, before what it
computes joins the residual stream, lies ``h + up(gelu(down(h)))``. ``up`` begins as zero, so that
the model begins as the base. What is computed is not linear: it cannot be merged.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from millrace_runtime.jobs import JobError
from millrace_tuner.methods import Adapter

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIGURATION_NAME = "adapter_config.json"
# Of Llama and its like, OPT, GPT-NeoX, Phi, Bloom and T5, in this order of names.
_LAST_LAYERS = frozenset(
    [
        "o_proj",
        "down_proj",
        "out_proj",
        "fc2",
        "dense",
        "dense_4h_to_h",
        "wo",
        "o",
        "linear2",
        "c_proj",
    ]
)


class Bottleneck(nn.Module):
    """A linear layer and the adapter behind it; shapes as of the layer alone."""

    def __init__(self, layer: nn.Linear, width: int, dropout: float) -> None:
        super().__init__()
        device = layer.weight.device
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(layer.out_features, width, device=device)
        self.up = nn.Linear(width, layer.out_features, device=device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(hidden)
        adapted: torch.Tensor = self.up(nn.functional.gelu(self.down(self.dropout(hidden))))
        return hidden + adapted


def insert(model: PreTrainedModel, adapter: Adapter) -> None:
    """Put adapters into ``model``, in place; of its own weights none is trained any more.

    Raises:
        JobError: ADAPTER_TARGET_UNKNOWN, when it is not known where its blocks end.
    """
    wanted = frozenset(adapter.target_modules) or _LAST_LAYERS
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = {name for name in layers if name.rpartition(".")[2] in wanted}
    if not chosen:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        message = f"adapter.target_modules: name the last layer of each block; there are {there}"
        raise JobError("ADAPTER_TARGET_UNKNOWN", message)
    model.requires_grad_(False)
    for name in sorted(chosen):
        adapted = Bottleneck(layers[name], adapter.rank, adapter.dropout)
        model.set_submodule(name, adapted)


def save(model: nn.Module, directory: Path, configuration: dict[str, object]) -> None:
    """Write the adapters alone and ``configuration``; the same bytes whenever it is written."""
    directory.mkdir(parents=True)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k in trained}
    save_file(weights, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    text = json.dumps(configuration, indent=2, sort_keys=True)
    (directory / CONFIGURATION_NAME).write_text(text + "\n")


def load(model: PreTrainedModel, directory: Path) -> None:
    """Put saved adapters into the base that they were trained on, in place."""
    given = json.loads((directory / CONFIGURATION_NAME).read_text())
    targets = tuple(given["target_modules"])
    insert(model, Adapter("bottleneck", rank=given["rank"], target_modules=targets))
    _, unknown = model.load_state_dict(load_file(directory / WEIGHTS_NAME), strict=False)
    if unknown:
        raise ValueError(f"the adapter is of another model: it has {unknown[0]}")
