"""Which recipe is tried next, and which is shipped. Pure.

Wanted is the smallest artifact that passes the gate; of those that are within 2 % of it in size,
the fastest. It is assumed that less is lost the more bits a weight has:

eights      8 bits, first: they cost no data. What they lose, fewer bits lose too
fours       4 bits to the nearest, smallest first; the first that passes ends this
refined     4 bits that look at data, only when those to the nearest lose too much
mixed       4 bits, and 8 for the most sensitive layers: by bisection, as few as pass
faster      other eights, when nothing smaller passes
references  more than 8 bits, when 8 lose too much

Each candidate is screened on a part of the held-out tokens, and only what would be shipped is
measured on all of them: what passes there is shipped, what does not is out and the search goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from millrace_compressor.jobs.format import Method
from millrace_compressor.jobs.hardware import Hardware

GROUP_SIZES = (128, 64, 32)
NEAREST: Method = "WEIGHT_METHOD_ROUND_TO_NEAREST"
_REFINED: tuple[Method, ...] = ("WEIGHT_METHOD_AWQ", "WEIGHT_METHOD_SCALE_ESTIMATION")
_SAME_SIZE = 1.02
# The bisection ends when this share of the layers is left: what is gained is not worth a trial.
_FINEST_SHARE = 16


@dataclass(frozen=True)
class Candidate:
    """A target and a recipe. ``raised``: how many of the most sensitive layers have 8 bits."""

    target: str
    group_size: int | None = None
    weight_method: Method | None = None
    raised: int = 0

    def __str__(self) -> str:
        said = [self.target]
        if self.group_size is not None:
            said.append(f"groups of {self.group_size}")
        if self.weight_method is not None:
            said.append(self.weight_method.removeprefix("WEIGHT_METHOD_").lower().replace("_", " "))
        if self.raised:
            said.append(f"{self.raised} layers in 8 bits")
        return ", ".join(said)


@dataclass(frozen=True)
class Trial:
    """What was found of a candidate.

    Attributes:
        latency_seconds: first token and one more, one stream.
        perplexity_increase: relative.
        task_score: of its answers; None: the gate does not judge them.
        is_full: measured on all held-out tokens, not only screened.
        error: why there is no artifact; empty: there is one, and the rest is measured.
    """

    size_bytes: int = 0
    latency_seconds: float | None = None
    perplexity_increase: float | None = None
    task_score: float | None = None
    keeps_quality: bool = False
    keeps_size: bool = False
    keeps_latency: bool = False
    is_full: bool = False
    error: str = ""

    @property
    def passes(self) -> bool:
        return self.keeps_quality and self.keeps_size and self.keeps_latency and not self.error


@dataclass(frozen=True)
class Space:
    """All that may be tried; each sequence by size, smallest first.

    ``layers``: how many can be raised to 8 bits; 0: the format cannot mix.
    """

    eights: Sequence[Candidate]
    fours: Sequence[Candidate]
    refined: Sequence[Candidate]
    references: Sequence[Candidate]
    layers: int = 0

    @property
    def most_trials(self) -> int:
        """An upper bound, for progress alone."""
        listed = len(self.eights) + len(self.fours) + len(self.refined) + len(self.references)
        return listed + min(self.layers, _FINEST_SHARE).bit_length()


@dataclass(frozen=True)
class Step:
    """``candidate`` is to be screened, or measured (``is_full``)."""

    candidate: Candidate
    is_full: bool


Trials = Mapping[Candidate, Trial]


def space_of(hardware: Hardware, inputs: Sequence[int]) -> Space:
    """What this machine's engines run.

    Args:
        inputs: of each layer; a group's size must divide them all.
    """
    fitting = [size for size in GROUP_SIZES if all(count % size == 0 for count in inputs)]
    sizes: Sequence[int | None] = fitting or [None]  # the format's own choice
    if hardware.capability is not None:
        return _of_gpus(hardware, sizes)
    four = "openvino-int4"
    refined_size = 64 if 64 in sizes else sizes[0]
    eights = [Candidate("openvino-int8")]
    if hardware.has_int8_products:
        eights.append(Candidate("openvino-int8-activations"))
    return Space(
        eights,
        [Candidate(four, size, NEAREST) for size in sizes],
        [Candidate(four, refined_size, method) for method in _REFINED],
        [Candidate("openvino-fp32")],
        len(inputs),
    )


def _of_gpus(hardware: Hardware, sizes: Sequence[int | None]) -> Space:
    four = "compressed-tensors-w4a16"
    fp8 = [Candidate("compressed-tensors-fp8")] if hardware.has_fp8 else []
    return Space(
        [*fp8, Candidate("compressed-tensors-w8a8")],
        [Candidate(four, size, NEAREST) for size in sizes],
        [Candidate(four, sizes[0], "WEIGHT_METHOD_AWQ"), Candidate(four, sizes[0])],
        [Candidate("safetensors-bf16"), Candidate("safetensors")],
    )


def following(space: Space, trials: Trials) -> Step | None:
    """What is to be done next; None: the search has ended, ``shipped`` says with what.

    No step is ever told twice for the trials that it leads to, and there are finitely many.
    """
    wanted = next(_screened(space, trials), None)
    if wanted is not None:
        return Step(wanted, is_full=False)
    found = favourite(trials)
    if found is None or trials[found].is_full:
        return None
    if not trials[found].passes and any(trial.is_full for trial in trials.values()):
        return None  # one that does not pass has been measured: there is something to show
    return Step(found, is_full=True)


def favourite(trials: Trials) -> Candidate | None:
    """The best that passes so far; else what comes nearest; None: there is no artifact at all."""
    made = {each: trial for each, trial in trials.items() if not trial.error}
    passing = {each: trial for each, trial in made.items() if trial.passes}
    if passing:
        limit = _SAME_SIZE * min(trial.size_bytes for trial in passing.values())
        alike = [each for each, trial in passing.items() if trial.size_bytes <= limit]
        return min(alike, key=lambda each: (*_speed(passing[each]), str(each)))
    keeping = {each: trial for each, trial in made.items() if trial.keeps_quality}
    if keeping:
        return min(keeping, key=lambda each: (keeping[each].size_bytes, str(each)))
    return min(made, key=lambda each: (*_loss(made[each]), str(each)), default=None)


def shipped(trials: Trials) -> Candidate | None:
    """What is made the artifact once nothing follows: the favourite, or where none passes what
    was measured in full, for the gate to reject. None: nothing could be made."""
    found = favourite(trials)
    if found is None or trials[found].is_full:
        return found
    return favourite({each: trial for each, trial in trials.items() if trial.is_full})


def _screened(space: Space, trials: Trials) -> Iterator[Candidate]:
    """What is left to screen, the next first."""
    first = space.eights[0]
    if first not in trials:
        yield first
        return
    eight = trials[first]
    if eight.keeps_quality or eight.error:
        yield from _with_4_bits(space, trials)
    larger = (*space.eights, *space.references)
    if any(trial.passes for each, trial in trials.items() if each not in larger):
        return
    if not (eight.keeps_size or eight.error):
        return  # what follows is no smaller
    yield from (each for each in space.eights if each not in trials)
    if not any(trials[each].keeps_quality for each in space.eights if each in trials):
        yield from _until_one_passes(space.references, trials)


def _with_4_bits(space: Space, trials: Trials) -> Iterator[Candidate]:
    for some in (space.fours, space.refined):
        fitting = [each for each in some if not _is_too_large(each, trials)]
        yield from _until_one_passes(fitting, trials)
        if any(trials[each].keeps_quality for each in some if each in trials):
            return  # what is left to try is larger, and no better than it must be
    if space.layers and trials[space.eights[0]].keeps_quality:
        yield from _mixed(space, trials)


def _is_too_large(candidate: Candidate, trials: Trials) -> bool:
    """Whether one with the same groups or larger ones is; the method does not change the size."""
    return any(
        each.target == candidate.target
        and not each.raised
        and (each.group_size or 0) >= (candidate.group_size or 0)
        and not (trial.keeps_size or trial.error)
        for each, trial in trials.items()
    )


def _until_one_passes(some: Sequence[Candidate], trials: Trials) -> Iterator[Candidate]:
    """Those before the first that passes, or that is too large: what follows it is larger."""
    for candidate in some:
        trial = trials.get(candidate)
        if trial is None:
            yield candidate
        elif trial.passes or not (trial.keeps_size or trial.error):
            return


def _mixed(space: Space, trials: Trials) -> Iterator[Candidate]:
    """Bisection between the 4 bits that lose too much and the 8 that do not."""
    base = _least_lossy([*space.fours, *space.refined], trials)
    if base is None:
        return
    low, high = 0, space.layers
    while high - low > max(1, space.layers // _FINEST_SHARE):
        middle = (low + high) // 2
        candidate = Candidate(base.target, base.group_size, base.weight_method, middle)
        trial = trials.get(candidate)
        if trial is None:
            yield candidate
            return
        if trial.error or not (trial.keeps_quality or trial.keeps_size):
            return  # more layers only make it larger, fewer only worse
        low, high = (low, middle) if trial.keeps_quality else (middle, high)


def _least_lossy(some: Sequence[Candidate], trials: Trials) -> Candidate | None:
    """Of those that are small enough as they are."""
    made = [each for each in some if each in trials and trials[each].keeps_size]
    return min(made, key=lambda each: (*_loss(trials[each]), str(each)), default=None)


def _speed(trial: Trial) -> tuple[float, int]:
    seconds = trial.latency_seconds
    return (float("inf") if seconds is None else seconds, trial.size_bytes)


def _loss(trial: Trial) -> tuple[float, int]:
    increase = trial.perplexity_increase
    return (float("inf") if increase is None else increase, trial.size_bytes)
