"""The output layer in a model's graph: what stands before it is the last hidden state.

Free of imports from this package, because the file is copied beside ``model.py`` into the Triton
repository.
"""

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

HIDDEN = "exact.hidden_states"
SCORED = "exact.scored_positions"
_POSITIONS_AXIS = 1
# Compressed weights are converted, shifted, scaled, reshaped and converted again.
_DEEPEST_CONSTANT = 10


def open_up(model: ov.Model) -> int:
    """Have a model show its last hidden state, and score only the positions that are asked for.

    The output ``HIDDEN`` is what the output layer reads, after the last norm: (sequences, tokens,
    size). The input ``SCORED``, int64 (n), says which positions of every sequence go on through
    the output layer, which is the largest of a small model's: ``logits`` are (sequences, n,
    vocabulary) then.

    Returns:
        The hidden state's size; 0 for a model whose output layer is not found, which stays as it
        was.
    """
    layer = _output_layer(model)
    if layer is None:
        return 0
    hidden = layer.input_value(0)
    size = hidden.get_partial_shape()[2]
    scored = ops.parameter([-1], np.int64, name=SCORED)
    scored.output(0).get_tensor().set_names({SCORED})
    kept = ops.gather(hidden, scored, ops.constant(np.int64(_POSITIONS_AXIS)))
    layer.input(0).replace_source_output(kept.output(0))
    model.add_parameters([scored])
    [shown] = model.add_outputs(hidden)
    shown.get_tensor().add_names({HIDDEN})
    model.validate_nodes_and_infer_types()
    return int(size.get_length())


def _output_layer(model: ov.Model) -> Any:
    """The last MatMul with weights, behind nothing but what changes each logit by itself.

    Models may scale, cap or convert their logits (Granite, Gemma). None when there is none.
    """
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        variable = [value for value in node.input_values() if not _is_constant(value)]
        if len(variable) != 1:
            return None
        node = variable[0].get_node()
    hidden, weights = node.input_values()
    shape = hidden.get_partial_shape()
    is_found = (
        _is_constant(weights)
        and not _is_constant(hidden)
        and shape.rank.is_static
        and len(shape) == _POSITIONS_AXIS + 2
        and shape[_POSITIONS_AXIS + 1].is_static
    )
    return node if is_found else None


def _is_constant(value: Any, depth: int = _DEEPEST_CONSTANT) -> bool:
    """Whether it is made of constants alone, as compressed weights are."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return True
    sources = node.input_values() if depth else []
    return bool(sources) and all(_is_constant(source, depth - 1) for source in sources)
