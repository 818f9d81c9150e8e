import pytest

from millrace_runtime.errors import InvalidArgument
from millrace_tuner import method_rules
from millrace_tuner.methods import DirectPreference, Method, Reinforcement, Supervised

GRADER = (
    '{"type": "string_check", "name": "same", "operation": "eq", '
    '"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}'
)


@pytest.mark.parametrize("method", [Supervised(), DirectPreference(), Reinforcement(GRADER)])
def test_what_makes_sense_is_let_through(method: Method) -> None:
    method_rules.require_sensible(method)


@pytest.mark.parametrize(
    ("method", "field"),
    [
        (DirectPreference(loss="exo_pair"), "method.dpo.label_smoothing"),
        (DirectPreference(loss="hinge", label_smoothing=0.1), "method.dpo.label_smoothing"),
        (Reinforcement("{"), "method.reinforcement.grader"),
        (
            Reinforcement(GRADER.replace('"eq"', '"same"')),
            "method.reinforcement.grader.operation",
        ),
    ],
)
def test_what_does_not_is_refused_by_name(method: Method, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        method_rules.require_sensible(method)
    assert caught.value.field == field
