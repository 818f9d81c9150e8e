"""Where a decoder of transformers keeps what can be taken away, and how it is taken.

Known is the form that Llama, Mistral, Qwen2, Qwen3 and their like share: ``model.layers``, each
with ``self_attn.{q,k,v,o}_proj`` and ``mlp.{gate,up,down}_proj``. What remains is a model of the
same class with a smaller configuration, so that every layer keeps as many groups and units as
every other.

A *group* is one key/value head with the query heads that read it (Ainslie et al. 2023,
arXiv:2305.13245); a *unit* is one hidden unit of the feed-forward network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from millrace_runtime.jobs import JobError

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FEEDFORWARD = ("gate_proj", "up_proj", "down_proj")
# Beside the projections; the norms are over one head's width.
_BESIDE_ATTENTION = frozenset({"q_norm", "k_norm", "rotary_emb"})
_BESIDE_FEEDFORWARD = frozenset({"act_fn"})


@dataclass(frozen=True)
class Size:
    """How many layers a model has, and how many groups and units each layer has."""

    layers: int
    groups: int
    units: int


def size_of(model: Any) -> Size:
    config = model.config
    return Size(config.num_hidden_layers, config.num_key_value_heads, config.intermediate_size)


def make_head_width_explicit(model: Any) -> None:
    """With fewer heads it no longer follows from the hidden size."""
    first: Any = layers_of(model)[0]
    model.config.head_dim = first.self_attn.head_dim


def layers_of(model: Any) -> nn.ModuleList:
    found: nn.ModuleList = model.model.layers
    return found


def require_known(model: Any) -> None:
    """Check that the model has the form that is described above.

    Raises:
        JobError: ARCHITECTURE_UNSUPPORTED, naming what is missing or not known.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise _unsupported(model, "it has no model.layers")
    for field in ("num_hidden_layers", "num_key_value_heads", "intermediate_size"):
        if not isinstance(getattr(model.config, field, None), int):
            raise _unsupported(model, f"its configuration has no whole number {field}")
    for number, layer in enumerate(layers):
        _require(model, number, layer, "self_attn", _ATTENTION, _BESIDE_ATTENTION)
        _require_norms_of_one_head(model, number, layer)
        _require(model, number, layer, "mlp", _FEEDFORWARD, _BESIDE_FEEDFORWARD)


def _require(
    model: Any, number: int, layer: Any, part: str, wanted: Sequence[str], beside: frozenset[str]
) -> None:
    where = f"model.layers.{number}.{part}"
    module = getattr(layer, part, None)
    if module is None:
        raise _unsupported(model, f"it has no {where}")
    for name in wanted:
        if not isinstance(getattr(module, name, None), nn.Linear):
            raise _unsupported(model, f"it has no linear {where}.{name}")
    own = [name for name, _ in module.named_children()]
    own += [name for name, _ in module.named_parameters(recurse=False)]
    for name in own:
        if name not in beside and name not in wanted:
            raise _unsupported(model, f"{where}.{name} is not known")


def _require_norms_of_one_head(model: Any, number: int, layer: Any) -> None:
    for name in ("q_norm", "k_norm"):
        norm = getattr(layer.self_attn, name, None)
        weight = getattr(norm, "weight", None)
        if weight is not None and weight.numel() != layer.self_attn.head_dim:
            where = f"model.layers.{number}.self_attn.{name}"
            raise _unsupported(model, f"{where} is over all heads at once")


def _unsupported(model: Any, problem: str) -> JobError:
    return JobError(
        "ARCHITECTURE_UNSUPPORTED",
        f"{type(model).__name__} cannot be pruned: {problem}; what is known are decoders of "
        "Llama's form",
    )


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Take away all layers but those of the numbers ``kept``, which are in their order."""
    layers = layers_of(model)
    model.model.layers = nn.ModuleList(layers[number] for number in kept)
    for place, layer in enumerate(model.model.layers):
        attention: Any = layer.self_attn
        attention.layer_idx = place  # the place in the key/value cache
    model.config.num_hidden_layers = len(kept)
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        model.config.layer_types = [kinds[number] for number in kept]


def keep_groups(model: Any, kept: Sequence[Sequence[int]]) -> None:
    """Take away all groups of each layer but ``kept[layer]``; as many are kept in every layer."""
    config = model.config
    queries = config.num_attention_heads // config.num_key_value_heads
    for layer, groups in zip(layers_of(model), kept, strict=True):
        attention: Any = layer.self_attn
        per_key = _places(groups, attention.head_dim)
        per_query = _places(groups, queries * attention.head_dim)
        _keep_outputs(attention.q_proj, per_query)
        _keep_outputs(attention.k_proj, per_key)
        _keep_outputs(attention.v_proj, per_key)
        _keep_inputs(attention.o_proj, per_query)
    config.num_key_value_heads = len(kept[0])
    config.num_attention_heads = len(kept[0]) * queries


def keep_units(model: Any, kept: Sequence[Sequence[int]]) -> None:
    """Take away all units of each layer but ``kept[layer]``; as many are kept in every layer."""
    for layer, units in zip(layers_of(model), kept, strict=True):
        feedforward: Any = layer.mlp
        places = torch.tensor(list(units))
        _keep_outputs(feedforward.gate_proj, places)
        _keep_outputs(feedforward.up_proj, places)
        _keep_inputs(feedforward.down_proj, places)
        feedforward.intermediate_size = len(units)
    model.config.intermediate_size = len(kept[0])


def _places(groups: Sequence[int], width: int) -> torch.Tensor:
    """The rows of some groups, of ``width`` rows each."""
    return (torch.tensor(list(groups))[:, None] * width + torch.arange(width)).flatten()


def _keep_outputs(linear: nn.Linear, places: torch.Tensor) -> None:
    linear.weight = _frozen(linear.weight[places])
    if linear.bias is not None:
        linear.bias = _frozen(linear.bias[places])
    linear.out_features = len(places)


def _keep_inputs(linear: nn.Linear, places: torch.Tensor) -> None:
    linear.weight = _frozen(linear.weight[:, places])
    linear.in_features = len(places)


def _frozen(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(), requires_grad=False)
