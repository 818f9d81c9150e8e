"""A frozen base in four bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), with bitsandbytes.

Only what is trained against is held so: a merged model is made from the base as it was committed.
"""

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel


def quantize(model: PreTrainedModel, kept: frozenset[str], precision: torch.dtype) -> None:
    """Hold the linear layers of ``model`` in nf4 with doubly quantized scales, in place.

    Left as they are: the output head, as the paper does, and the layers whose name or whose
    parent's name is in ``kept``. Products are computed in ``precision``.
    """
    head: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, layer in list(model.named_modules()):
        is_kept = layer is head or not kept.isdisjoint(name.split("."))
        if isinstance(layer, nn.Linear) and not is_kept:
            model.set_submodule(name, _quantized(layer, precision))
    vars(model)["is_loaded_in_4bit"] = True  # PEFT chooses its layers by this


def _quantized(layer: nn.Linear, precision: torch.dtype) -> Linear4bit:
    device = layer.weight.device
    held: Linear4bit = Linear4bit(  # type: ignore[no-untyped-call]
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=precision,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    held.weight = Params4bit(
        layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    held.bias = layer.bias
    return held.to(device)
