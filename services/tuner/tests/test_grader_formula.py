"""The formula of a multi grader: what it computes, and that nothing else gets through."""

import contextlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_tuner.graders.formula import (
    FUNCTIONS,
    MAXIMUM_DEPTH,
    MAXIMUM_LENGTH,
    CalculationError,
    FormulaError,
    parse,
)

NAMES = ("a", "b")
small = st.floats(min_value=-8, max_value=8, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 * a + 0.5 * b", 1.5),
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("8 / 2 / 2", 2),
        ("8 - 2 - 2", 4),
        ("2 ^ 3 ^ 2", 512),
        ("-2 ^ 2", -4),
        ("2 ^ -1", 0.5),
        ("--a", 1),
        ("min(a, b, 3) + max(a, b)", 3),
        ("abs(0 - 3) + floor(1.9) + ceil(1.1)", 6),
        ("exp(0) + sqrt(9) + log(1)", 4),
        (" 1e2 + .5 ", 100.5),
    ],
)
def test_it_computes(text: str, expected: float) -> None:
    assert parse(text).value({"a": 1.0, "b": 2.0}) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends where a value"),
        ("1 +", "ends where a value"),
        ("1 2", "'2' at character 3"),
        ("a b", "'b' at character 3"),
        ("(1", "')' was expected, not the end"),
        ("1)", "')' at character 2"),
        ("a ** 2", "'*' at character 4"),
        ("a % 2", "'%' at character 3"),
        ("__import__('os')", "at character 12"),
        ("__import__(1)", "there is no function __import__"),
        ("a.real", "'.' at character 2"),
        ("eval(1)", "there is no function eval"),
        ("sqrt(1, 2)", "takes 1 argument, not 2"),
        ("min()", "stands where a value"),
        ("min + 1", "needs its arguments"),
        ("1 if a else 2", "'if' at character 3"),
        ("(" * (MAXIMUM_DEPTH + 2) + "1" + ")" * (MAXIMUM_DEPTH + 2), "nests deeper"),
        ("-" * 1000 + "1", "nests deeper"),
        ("1 + " * MAXIMUM_LENGTH + "1", "is longer"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=re.escape(says)):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "1 / 0",
        "log(0)",
        "sqrt(0 - 1)",
        "9 ^ 9 ^ 9 ^ 9",
        "exp(10000)",
        "(0 - 1) ^ 0.5",
        "1e308 * 10",
        "log(a)",
    ],
)
def test_what_has_no_finite_value_is_said(text: str) -> None:
    with pytest.raises(CalculationError):
        parse(text).value({"a": 0.0})


def test_names_are_known() -> None:
    assert parse("a * max(b, 2) + a").names == {"a", "b"}


# Formulas and what Python makes of them: as text, and as the same text of Python's.
leaves = st.sampled_from(NAMES) | st.floats(0, 100, allow_nan=False).map(lambda f: f"{f:.3f}")


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, st.sampled_from("+-*/"), inner)
    calls = st.tuples(st.sampled_from(["min", "max"]), inner, inner)
    return (
        pairs.map(lambda p: f"({p[0]} {p[1]} {p[2]})")
        | calls.map(lambda c: f"{c[0]}({c[1]}, {c[2]})")
        | inner.map(lambda i: f"abs(-{i})")
        | inner.map(lambda i: f"{i}^2")
    )


@given(st.recursive(leaves, _joined, max_leaves=12), small, small)
def test_it_agrees_with_python(text: str, a: float, b: float) -> None:
    rewards = {"a": a, "b": b}
    try:
        expected = eval(text.replace("^2", "**2.0"), {"min": min, "max": max, "abs": abs}, rewards)
    except ArithmeticError:
        expected = math.nan
    try:
        found = parse(text).value(rewards)
    except CalculationError:
        assert not math.isfinite(expected)
        return
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.text(alphabet="ab0123456789.eE+-*/^(), " + "".join(FUNCTIONS), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        formula = parse(text)
    except FormulaError:
        return
    if formula.names <= set(NAMES):
        with contextlib.suppress(CalculationError):
            assert math.isfinite(formula.value({"a": 0.5, "b": 1.0}))
