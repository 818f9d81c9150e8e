"""The search over recipes: what it ships, when it stops, and that it does nothing twice."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_compressor.jobs import hardware, search
from millrace_compressor.jobs.hardware import Hardware
from millrace_compressor.jobs.search import NEAREST, Candidate, Space, Step, Trial, Trials

VNNI = Hardware(frozenset({"avx2", "avx512_vnni"}))
PLAIN = Hardware(frozenset({"avx2"}))
LAYERS = [256] * 40
INT8, ACTIVATIONS = Candidate("openvino-int8"), Candidate("openvino-int8-activations")
SPACES = {
    "vnni": search.space_of(VNNI, LAYERS),
    "avx2": search.space_of(PLAIN, LAYERS),
    "odd": search.space_of(PLAIN, [100, 96]),
    "hopper": search.space_of(Hardware(frozenset(), (9, 0)), LAYERS),
    "ampere": search.space_of(Hardware(frozenset(), (8, 0)), LAYERS),
}
outcomes = st.builds(
    Trial,
    size_bytes=st.integers(1, 50),
    latency_seconds=st.none() | st.floats(0.001, 1),
    perplexity_increase=st.none() | st.floats(-0.1, 1),
    keeps_quality=st.booleans(),
    keeps_size=st.booleans(),
    keeps_latency=st.booleans(),
) | st.builds(Trial, error=st.just("GROUP_SIZE_INVALID: it does not fit"))


def bits(candidate: Candidate) -> float:
    """A weight, with its share of scales: what a model of quality and size is made of here."""
    if "fp32" in candidate.target:
        return 32
    if "int8" in candidate.target:
        return 8
    groups = 0.0 if candidate.group_size is None else 20 / candidate.group_size
    raised = candidate.raised / len(LAYERS)
    return 8 * raised + (4 + groups) * (1 - raised)


def lossy(candidate: Candidate) -> float:
    """Perplexity's increase: the rounding's variance; less of it where data is looked at."""
    better = 1.0 if candidate.weight_method in (None, NEAREST) else 0.7
    return better * 4.0 ** -bits(candidate) * 256


def world(quality: float, size: float, seconds: float = 9.0) -> dict[Candidate, Trial]:
    """What the rule of bits makes of each candidate under limits."""

    class World(dict[Candidate, Trial]):
        def __missing__(self, each: Candidate) -> Trial:
            latency = 0.5 if each == ACTIVATIONS else 1.0
            return Trial(
                size_bytes=int(bits(each) * 1000),
                latency_seconds=latency,
                perplexity_increase=lossy(each),
                keeps_quality=lossy(each) <= quality,
                keeps_size=bits(each) <= size,
                keeps_latency=latency <= seconds,
            )

    return World()


def play(space: Space, of: dict[Candidate, Trial]) -> tuple[Trials, list[Step]]:
    """The trials that a search ends with, and the steps it took."""
    trials: dict[Candidate, Trial] = {}
    steps: list[Step] = []
    while step := search.following(space, trials):
        steps.append(step)
        assert len(steps) < 100, "it does not end"
        found = of[step.candidate]
        trials[step.candidate] = Trial(**{**vars(found), "is_full": step.is_full})
    return trials, steps


@given(st.data(), st.sampled_from(sorted(SPACES)))
def test_it_ends_does_nothing_twice_and_ships_only_what_was_measured_in_full(
    data: st.DataObject, name: str
) -> None:
    """Whatever is found, also where the screening and the whole measurement differ."""
    trials: dict[Candidate, Trial] = {}
    steps: list[Step] = []
    while step := search.following(SPACES[name], trials):
        assert search.following(SPACES[name], dict(trials)) == step, "it is deterministic"
        assert step not in steps, "nothing is measured twice"
        steps.append(step)
        assert len(steps) <= 2 * (SPACES[name].most_trials + 40)
        if step.is_full:
            made = data.draw(outcomes.filter(lambda trial: not trial.error))
        else:
            made = data.draw(outcomes)
        trials[step.candidate] = Trial(**{**vars(made), "is_full": step.is_full})
    chosen = search.shipped(trials)
    if chosen is None:
        assert all(trial.error for trial in trials.values())
        return
    assert trials[chosen].is_full
    passing = [trial for trial in trials.values() if trial.passes]
    assert trials[chosen].passes == bool(passing)
    if passing:
        smallest = min(trial.size_bytes for trial in passing)
        assert trials[chosen].size_bytes <= 1.02 * smallest


@given(quality=st.floats(1e-4, 2), size=st.floats(3, 40))
def test_by_the_rule_of_bits_it_finds_the_smallest_that_passes(quality: float, size: float) -> None:
    """To a step of the bisection, of all that a search by brute force could have tried."""
    space = SPACES["avx2"]
    of = world(quality, size)
    trials, steps = play(space, of)
    chosen = search.shipped(trials)
    assert chosen is not None
    listed = [*space.eights, *space.fours, *space.references]
    everything = [each for each in listed if of[each].passes]
    if everything:
        assert of[chosen].passes
        assert of[chosen].size_bytes <= min(of[each].size_bytes for each in everything)
    assert len(steps) <= space.most_trials + 1


def test_what_is_cheap_comes_first_and_the_first_that_passes_ends_it() -> None:
    trials, steps = play(SPACES["vnni"], world(quality=2, size=40))
    assert [step.candidate for step in steps] == [
        INT8,
        *[Candidate("openvino-int4", 128, NEAREST)] * 2,
    ]
    assert [step.is_full for step in steps] == [False, False, True]
    assert search.shipped(trials) == Candidate("openvino-int4", 128, NEAREST)


def test_layers_are_raised_by_bisection_when_4_bits_lose_too_much() -> None:
    limit = lossy(Candidate("openvino-int4", 32, NEAREST)) / 3
    trials, steps = play(SPACES["avx2"], world(quality=limit, size=7.9))
    chosen = search.shipped(trials)
    assert chosen is not None and 0 < chosen.raised < len(LAYERS)
    assert trials[chosen].passes
    mixed = [step.candidate.raised for step in steps if step.candidate.raised]
    assert len(set(mixed)) <= 5, "it halves"
    assert Candidate("openvino-fp32") not in trials


def test_when_nothing_smaller_passes_the_faster_of_8_bits_is_taken() -> None:
    limit = 1.01 * lossy(INT8)
    assert search.shipped(play(SPACES["vnni"], world(limit, 40))[0]) == ACTIVATIONS
    assert search.shipped(play(SPACES["avx2"], world(limit, 40))[0]) == INT8
    only_fast = play(SPACES["vnni"], world(limit, 40, seconds=0.7))[0]
    assert search.shipped(only_fast) == ACTIVATIONS


def test_what_8_bits_lose_is_not_tried_with_fewer() -> None:
    trials, _ = play(SPACES["avx2"], world(quality=lossy(INT8) / 2, size=40))
    assert search.shipped(trials) == Candidate("openvino-fp32")
    assert set(trials) == {INT8, Candidate("openvino-fp32")}


def test_where_nothing_passes_the_nearest_is_measured_in_full() -> None:
    trials, steps = play(SPACES["avx2"], world(quality=2, size=3))
    assert search.shipped(trials) == Candidate("openvino-int4", 128, NEAREST)
    assert [step.is_full for step in steps] == [False, False, True]
    assert not any(trial.passes for trial in trials.values())


def test_machines_have_the_candidates_that_are_of_use_there() -> None:
    assert list(SPACES["avx2"].eights) == [INT8]
    assert list(SPACES["vnni"].eights) == [INT8, ACTIVATIONS]
    assert [each.group_size for each in SPACES["vnni"].fours] == [128, 64, 32]
    assert [each.group_size for each in SPACES["odd"].fours] == [None]
    names = [each.target for each in SPACES["hopper"].eights]
    assert names == ["compressed-tensors-fp8", "compressed-tensors-w8a8"]
    assert [each.target for each in SPACES["ampere"].eights] == ["compressed-tensors-w8a8"]
    assert SPACES["hopper"].layers == 0


@pytest.mark.parametrize(
    ("text", "found", "has_products"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n", {"avx2", "avx512_vnni"}, True),
        ("flags : fpu avx2 sse\n", {"avx2"}, False),
        ("flags : avx2 amx_tile amx_int8\n", {"avx2", "amx_int8"}, True),
        ("processor : 0\nFeatures : fp asimd asimddp\n", {"asimddp"}, True),
        ("nothing of the kind\n", set(), False),
    ],
)
def test_a_cpu_is_what_the_kernel_says(
    tmp_path: Path, text: str, found: set[str], has_products: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    instructions = hardware.instructions(tmp_path / "cpuinfo")
    assert instructions == found
    assert Hardware(instructions).has_int8_products == has_products
    assert hardware.instructions(tmp_path / "absent") == frozenset()
