"""Where a model's output layer is found. Graphs are built, and none is compiled."""

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from millrace_registry.engines.head import HIDDEN, SCORED, open_up

SIZE, VOCABULARY = 4, 10


def weights(is_compressed: bool = False) -> Any:
    if not is_compressed:
        return ops.constant(np.ones((VOCABULARY, SIZE), np.float32))
    stored = ops.constant(np.ones((VOCABULARY, SIZE), np.uint8))
    shifted = ops.subtract(ops.convert(stored, "f16"), ops.constant(np.ones((1, 1), np.float16)))
    scaled = ops.multiply(shifted, ops.constant(np.ones((VOCABULARY, 1), np.float16)))
    return ops.convert(scaled, "f32")


def capped(logits: Any) -> Any:
    """As Gemma's."""
    cap = ops.constant(np.float32(30))
    return ops.multiply(ops.tanh(ops.divide(logits, cap)), cap)


def model_of(states: Any, logits: Any) -> ov.Model:
    logits.output(0).get_tensor().set_names({"logits"})
    return ov.Model([ops.result(logits)], [states], "model")


def states() -> Any:
    given = ops.parameter([-1, -1, SIZE], np.float32, name="states")
    given.output(0).get_tensor().set_names({"states"})
    return given


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("is_capped", [False, True])
def test_the_state_before_the_last_weights_is_shown(is_compressed: bool, is_capped: bool) -> None:
    given = states()
    normed = ops.multiply(given, ops.constant(np.ones((1, 1, SIZE), np.float32)))
    logits = ops.matmul(normed, weights(is_compressed), False, True)
    model = model_of(given, capped(logits) if is_capped else logits)
    assert open_up(model) == SIZE
    assert HIDDEN in model.outputs[1].get_names()
    assert model.outputs[1].get_node().input_value(0).get_node().get_name() == normed.get_name()
    assert SCORED in model.inputs[-1].get_names()
    assert str(model.output("logits").get_partial_shape()) == f"[?,?,{VOCABULARY}]"


def test_a_model_without_one_stays_as_it_was() -> None:
    given = states()
    model = model_of(given, ops.add(given, ops.relu(given)))
    assert open_up(model) == 0
    assert (len(model.inputs), len(model.outputs)) == (1, 1)


def test_a_product_of_two_states_is_none() -> None:
    given = states()
    product = ops.matmul(given, ops.relu(given), False, True)
    assert open_up(model_of(given, product)) == 0
