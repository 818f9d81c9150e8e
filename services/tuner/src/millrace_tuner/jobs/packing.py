"""Several examples in one sequence, none of which sees another, and no token of padding.

The examples of a forward pass lie one behind the other. Positions begin anew with each, and
attention is computed for each alone: no mask of the whole square, and no work between examples.
As a row has no length of its own, nothing is left over and nothing need be fitted into bins.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "millrace_packed"
_PROBE_LENGTHS = (5, 9, 3)
_TOLERANCE = 1e-3
_IGNORED = -100


class PackingCollator:
    """Lays the examples of a forward pass one behind the other.

    Makes ``input_ids``, ``labels`` and ``position_ids`` of shape (1, tokens), and ``lengths``, the
    tokens of each example. The first token of an example is nobody's target.
    """

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        ids = [torch.as_tensor(feature["input_ids"]) for feature in features]
        labels = [torch.as_tensor(feature["labels"]) for feature in features]
        lengths = tuple(len(each) for each in ids)
        targets = torch.cat(labels)
        starts = torch.tensor((0, *lengths[:-1])).cumsum(0)
        targets[starts] = _IGNORED
        positions = torch.cat([torch.arange(length) for length in lengths])
        return {
            "input_ids": torch.cat(ids)[None],
            "labels": targets[None],
            "position_ids": positions[None],
            "lengths": lengths,
        }


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lengths: tuple[int, ...] | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of ``lengths``; without those, transformers' own.

    ``query`` has shape (1, heads, tokens, width), ``key`` and ``value`` may have fewer heads;
    returns (1, tokens, heads, width).
    """
    if lengths is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **more
        )
        return found
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    parts = zip(*(torch.split(each, list(lengths), 2) for each in (query, key, value)), strict=True)
    seen = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        for q, k, v in parts
    ]
    return torch.cat(seen, 2).transpose(1, 2).contiguous(), None


def _mask(attention_mask: torch.Tensor | None = None, **more: Any) -> Any:
    """Padded batches have a mask; packed ones, whose parts are computed alone, need none."""
    if attention_mask is None:
        return None
    return sdpa_mask(attention_mask=attention_mask, **more)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def enable(model: PreTrainedModel) -> bool:
    """Have ``model`` attend within examples; whether it can, which is tried and not believed.

    It cannot where something else than attention carries a state along the sequence, where
    attention is limited to a window, or where positions are not taken from ``position_ids``.
    """
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return False
    former = model.config._attn_implementation
    text = model.config.get_text_config()
    others = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    is_limited = bool(others) or getattr(text, "sliding_window", None) is not None
    if former != "sdpa" or is_limited or not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(ATTENTION)
    if _keeps_apart(model):
        return True
    model.set_attn_implementation(former)
    return False


@torch.no_grad()
def _keeps_apart(model: PreTrainedModel) -> bool:
    """Whether examples that lie in one row are answered as each is alone."""
    was_training = model.training
    model.train(False)
    device = next(model.parameters()).device
    limit = model.config.get_text_config().vocab_size
    texts = [torch.arange(length) * 7 % limit for length in _PROBE_LENGTHS]
    batch = PackingCollator()([{"input_ids": text, "labels": text} for text in texts])
    del batch["labels"]
    together = model(**{k: _on(v, device) for k, v in batch.items()}).logits[0]
    alone = torch.cat([model(text[None].to(device)).logits[0] for text in texts])
    model.train(was_training)
    return torch.allclose(together, alone, rtol=_TOLERANCE, atol=_TOLERANCE)


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
