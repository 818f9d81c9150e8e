"""Compared and judged answers as tokens; files with mistakes; none of it needs torch."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuner_builders import judgements, preferences, tokenizer, write_base, write_jsonl

from millrace_examples.kinds import Judged, Preference
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner import hyperparameters
from millrace_tuner.jobs import preference_examples, validate
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import (
    Adapter,
    DirectPreference,
    Hyperparameters,
    KahnemanTversky,
    Method,
    OddsRatio,
    RewardModel,
)

USER = {"role": "user", "content": "Say mill."}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def pair(preferred: str, rejected: str, prompt: tuple[dict[str, Any], ...] = (USER,)) -> Preference:
    return Preference(1, prompt, (), (said(preferred),), (said(rejected),))


@pytest.fixture
def codec() -> ChatCodec:
    return ChatCodec(tokenizer(), ("<|endoftext|>", "<|im_end|>"))


@pytest.mark.parametrize(
    "prompt",
    [
        (USER,),
        ({"role": "system", "content": "Be brief."}, USER, said("mill"), USER),
    ],
)
def test_a_prompt_has_the_ids_that_serving_computes(
    codec: ChatCodec, prompt: tuple[dict[str, Any], ...]
) -> None:
    served = codec.tokenizer.apply_chat_template(
        list(prompt), add_generation_prompt=True, return_dict=False
    )
    made = preference_examples.compare(pair("\n\nthe mill", "no", prompt), codec, 512)
    for answer, text in ((made.preferred, "\n\nthe mill"), (made.rejected, "no")):
        start = int(np.argmax(answer.is_learned))
        assert answer.token_ids[:start].tolist() == served
        assert answer.is_learned[start:].all()
        written = codec.encode([f"{text}<|im_end|>"])[0]
        assert answer.token_ids[start:].tolist() == written


def test_a_tools_reply_within_an_answer_is_not_learned(codec: ChatCodec) -> None:
    call = {"id": "1", "function": {"name": "look", "arguments": "{}"}}
    answer = (
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "a wheel"},
        said("It turns."),
    )
    tools = ({"type": "function", "function": {"name": "look"}},)
    made = preference_examples.judge(Judged(1, (USER,), answer, True, tools), codec, 512)
    learned = str(codec.tokenizer.decode(made.answer.token_ids[made.answer.is_learned]))
    given = str(codec.tokenizer.decode(made.answer.token_ids[~made.answer.is_learned]))
    assert learned.endswith("It turns.<|im_end|>")
    assert '"look"' in learned
    assert "a wheel" in given
    assert "a wheel" not in learned


def test_what_is_the_same_up_to_the_limit_is_skipped(codec: ChatCodec) -> None:
    rows = [pair("the mill turns", "the mill stands"), pair("yes", "no"), pair("no", "yes")]
    whole = preference_examples.compare(rows[0], codec, 512)
    both = zip(whole.preferred.token_ids, whole.rejected.token_ids, strict=False)
    first = next(place for place, (one, other) in enumerate(both) if one != other)
    material = preference_examples.prepare(
        rows, None, lambda row: preference_examples.compare(row, codec, first), lambda done: None
    )
    assert material.skipped == 1
    assert len(material.training) == len(material.heldout) == 1
    with pytest.raises(JobError) as caught:
        preference_examples.prepare(
            rows, None, lambda row: preference_examples.compare(row, codec, 3), lambda done: None
        )
    assert caught.value.reason == "NOTHING_TO_LEARN"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("validated")
    return folder / "base", write_base(folder / "base")


def validated(base: tuple[Path, str], method: Method, rows: list[Any], **more: Any) -> Any:
    path = base[0].with_name("rows.jsonl")
    given: dict[str, Any] = {
        "job": "ftjob-1",
        "model": "ft:demo:default::abc123",
        "base_version": "demo@1",
        "base_checkpoint_path": base[0],
        "base_checkpoint_digest": base[1],
        "training_file_path": path,
        "training_file_sha256": write_jsonl(path, rows),
        "output_directory": base[0].with_name("out"),
        "method": method,
        "hyperparameters": Hyperparameters(1, 8, 1.0),
        "learning_rate": 1e-3,
    }
    lines = io.StringIO()
    validate.work(Spec(**{**given, **more}), Reporter(lines))
    return json.loads(lines.getvalue())


def test_files_are_counted_before_the_job_waits_for_its_turn(base: tuple[Path, str]) -> None:
    pairs = validated(base, DirectPreference(), preferences(12))
    verdicts = validated(base, KahnemanTversky(), judgements(12))
    assert pairs["training_examples"] == 12
    assert verdicts["training_examples"] == 24
    assert pairs["training_tokens"] == verdicts["training_tokens"]
    assert pairs["longest_tokens"] == verdicts["longest_tokens"] > 10
    assert pairs["validation_examples"] == 0
    # Of a pair both answers can be judged, as in TRL.
    assert validated(base, KahnemanTversky(), preferences(12))["training_examples"] == 24
    assert validated(base, RewardModel(), preferences(12)) == pairs


def test_a_batch_that_nobody_chose_is_large_enough_for_kto() -> None:
    asked = hyperparameters.AUTO
    assert hyperparameters.resolve(KahnemanTversky(), 10, asked).batch_size == 2
    assert hyperparameters.resolve(DirectPreference(), 10, asked).batch_size == 1


BAD = {**preferences(1)[0], "preferred_output": []}


@pytest.mark.parametrize(
    ("method", "rows", "more", "reason", "named"),
    [
        (DirectPreference(), [*preferences(2), BAD], {}, "INVALID_EXAMPLE", "line 3"),
        (OddsRatio(), judgements(3), {}, "WRONG_FORMAT", "orpo"),
        (KahnemanTversky(), [{"text": "x"}] * 3, {}, "WRONG_FORMAT", "good or bad"),
        (DirectPreference("exo_pair"), preferences(3), {}, "INVALID_SPEC", "0.001"),
        (DirectPreference("ipo", 0.1, 0.1), preferences(3), {}, "INVALID_SPEC", "robust"),
        (
            KahnemanTversky(),
            judgements(3),
            {"hyperparameters": Hyperparameters(1, 1, 1.0)},
            "BATCH_TOO_SMALL",
            "2 or more",
        ),
        (
            RewardModel(),
            preferences(3),
            {"adapter": Adapter(kind="prefix")},
            "ADAPTER_UNSUITABLE",
            "prefix",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused_with_its_place(
    base: tuple[Path, str],
    method: Method,
    rows: list[Any],
    more: dict[str, Any],
    reason: str,
    named: str,
) -> None:
    with pytest.raises(JobError) as caught:
        validated(base, method, rows, **more)
    assert caught.value.reason == reason
    assert named in str(caught.value)
