"""Parity: whether every form of a tuned model says what the model in training said.

A tuning job renders fixed probes and scores their tokens with the model that it trains. Whoever
makes another form of the model (adapter, merged weights, export, 8 bits, an engine) scores the
same token ids, and says here how far the two are apart. The report, ``parity.json``, lies in the
checkpoint and in each artifact made of it. Standard library only.

ParityError   a report cannot be read
"""

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

REPORT_NAME = "parity.json"
TRAINER = "trainer"
ARTIFACT = "artifact"
MAXIMUM_TOKENS = 256  # of a probe; a longer one is scored that far
# Ends what templates print of the day: probes are rendered on this one, at noon.
RENDERED_ON = (2026, 1, 1, 12)
_DIGITS = 6

Scores = Sequence[float | None]


class ParityError(Exception):
    """A report is damaged, or of a form that is not known."""


@dataclass(frozen=True)
class Limits:
    """What a difference of log-probabilities may be, in nats: the mean over all tokens of all
    probes, and the largest of one token."""

    mean: float
    maximum: float


LIMITS = {
    "float32": Limits(0.001, 0.02),
    "float16": Limits(0.02, 0.5),
    "bfloat16": Limits(0.05, 1.0),
    "int8": Limits(0.1, 2.0),
    # Twice int8's: a model of 2 million parameters differed by 0.010 and 0.11, with int8 by 0.005
    # and 0.06.
    "int8-activations": Limits(0.2, 4.0),
    # The same model: 0.043 and 0.42. As nf4, which has as many values.
    "int4": Limits(0.5, 8.0),
    "nf4": Limits(0.5, 8.0),
    # Less of the model: a broken one is found; how good it is, the gate judges.
    "pruned": Limits(2.0, 30.0),
}
"""By the coarsest type that the weights of one of the two forms were rounded to."""


@dataclass(frozen=True)
class Probe:
    """Fixed tokens, and what was said of them.

    Attributes:
        messages: what was rendered; None: the tokens are held-out ones of the job.
        text_sha256: of the rendered prompt; empty when the template refuses ``messages``.
        token_ids: of the prompt, then of a continuation; none when refused.
        prompt_tokens: how many of them are the prompt's.
        scores: natural log-probability of each token after the first, by who computed it.
    """

    name: str
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    text_sha256: str = ""
    token_ids: Sequence[int] = ()
    prompt_tokens: int = 0
    scores: Mapping[str, Scores] = field(default_factory=dict)

    def scored(self, by: str, scores: Scores) -> "Probe":
        return replace(self, scores={**self.scores, by: list(scores)})


@dataclass(frozen=True)
class Stage:
    """One comparison. ``mismatch`` says in words what is wrong; empty: nothing is.

    The differences are in nats; None: nothing was scored, or not to a finite number.
    """

    stage: str
    tokens: int = 0
    mean_difference: float | None = None
    maximum_difference: float | None = None
    mean_limit: float = 0.0
    maximum_limit: float = 0.0
    mismatch: str = ""


@dataclass(frozen=True)
class Report:
    """``files``: sha256 of the model's files, by name, as the tuning job wrote them."""

    files: Mapping[str, str]
    probes: Sequence[Probe]
    stages: Sequence[Stage] = ()

    def write(self, directory: Path) -> None:
        text = json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False)
        (directory / REPORT_NAME).write_text(text + "\n", encoding="utf-8")


def read(directory: Path) -> Report:
    """The report in a checkpoint or an artifact.

    Raises:
        ParityError: it is absent or damaged.
    """
    try:
        document = json.loads((directory / REPORT_NAME).read_text(encoding="utf-8"))
        return Report(
            files=dict(document["files"]),
            probes=[Probe(**probe) for probe in document["probes"]],
            stages=[Stage(**stage) for stage in document["stages"]],
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ParityError(f"{REPORT_NAME} cannot be read: {error!r}") from error


def coarsest(*dtypes: str) -> Limits:
    """The limits of the type that rounds most."""
    return max((LIMITS[dtype] for dtype in dtypes), key=lambda limits: limits.mean)


def rounded(scores: Iterable[float]) -> list[float | None]:
    """Scores as a report holds them: JSON knows no infinity."""
    return [round(score, _DIGITS) if math.isfinite(score) else None for score in scores]


def compare(
    stage: str, expected: Sequence[Scores], found: Sequence[Scores], limits: Limits
) -> Stage:
    """Hold the scores of one form against another's, probe by probe."""
    mismatch, differences = "", []
    if [len(scores) for scores in expected] != [len(scores) for scores in found]:
        mismatch = "not every token was scored"
    for before, after in zip(expected, found, strict=False):
        for one, other in zip(before, after, strict=False):
            if one is not None and other is not None:
                differences.append(abs(one - other))
            elif one is not other:
                mismatch = mismatch or "a log-probability is not a finite number"
    if not differences:
        return Stage(stage, mismatch=mismatch or "nothing was scored")
    made = Stage(
        stage,
        tokens=len(differences),
        mean_difference=round(math.fsum(differences) / len(differences), _DIGITS),
        maximum_difference=round(max(differences), _DIGITS),
        mean_limit=limits.mean,
        maximum_limit=limits.maximum,
        mismatch=mismatch,
    )
    return made if mismatch else replace(made, mismatch=_excess(made))


def _excess(made: Stage) -> str:
    assert made.mean_difference is not None and made.maximum_difference is not None
    is_within = made.mean_difference <= made.mean_limit
    if is_within and made.maximum_difference <= made.maximum_limit:
        return ""
    return (
        f"log-probabilities of {made.tokens} tokens differ by {made.mean_difference:.3g} on "
        f"average and {made.maximum_difference:.3g} at most; {made.mean_limit:g} and "
        f"{made.maximum_limit:g} are allowed"
    )


def first_mismatch(stages: Iterable[Stage]) -> str:
    """The first stage that is wrong, by name and with its figures; empty when all is well."""
    for stage in stages:
        if stage.mismatch:
            return f"parity is broken at the stage {stage.stage!r}: {stage.mismatch}"
    return ""


def render(tokenizer: Any, probe: Probe) -> str:
    """The prompt of a probe, on a day that does not change.

    ``tokenizer`` is transformers' (``PreTrainedTokenizerBase``).

    Raises:
        TemplateError, TypeError, ValueError: the template refuses it.
    """
    on = datetime.datetime(*RENDERED_ON, tzinfo=datetime.UTC)
    texts = tokenizer.apply_chat_template(
        [list(probe.messages or ())],
        tools=list(probe.tools) or None,
        tokenize=False,
        add_generation_prompt=True,
        strftime_now=on.strftime,
    )
    return str(texts[0])
