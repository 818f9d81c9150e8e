"""The task of a deployment, measured of the original and of the artifact."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_compress import Store, tokenizer

from millrace_compressor import convert, gate
from millrace_compressor.domain import GatePolicy
from millrace_compressor.jobs import auto, evaluate, plain, task
from millrace_compressor.jobs.compress import Spec
from millrace_compressor.jobs.hardware import Hardware
from millrace_compressor.jobs.search import Candidate, Space
from millrace_compressor.jobs.task import Task
from millrace_compressor.rows import measurements_of
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
EXACT = "TASK_METRIC_EXACT_MATCH"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def written(path: Path, said: Sequence[dict[str, Any]], **changes: Any) -> Task:
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    given = {"path": path, "digest": manifest.sha256_file(path), "metric": EXACT}
    return Task.model_validate({**given, "file": "tenants/acme/files/file-1", **changes})


def prompted(count: int, reference: str = "yes") -> list[dict[str, Any]]:
    return [{"prompt": f"Is {n} a number?", "completion": reference} for n in range(count)]


class Parrot:
    """A model that always says the same, and counts how often it was asked."""

    def __init__(self, text: str) -> None:
        self._ids = tokenizer()(text)["input_ids"]
        self.asked = 0

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        self.asked += 1
        return [self._ids[:tokens] for _ in prompts]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer and no weights."""
    folder = tmp_path / "checkpoint" / "model"
    tokenizer().save_pretrained(folder)
    config = {"max_position_embeddings": 64, "eos_token_id": [2, 0], "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_template(model: Path) -> Path:
    fast = tokenizer()
    fast.chat_template = TEMPLATE
    fast.save_pretrained(model)
    return model


def test_the_same_file_and_seed_give_the_same_rows(tmp_path: Path, model: Path) -> None:
    rows = prompted(20)
    asked = written(tmp_path / "rows.jsonl", rows, rows=8)
    first = task.questions(asked, model)
    assert len(first.rows) == 8
    shuffled = written(tmp_path / "other.jsonl", [*rows[::-1], rows[0]], rows=8)
    assert task.questions(shuffled, model).digest == first.digest
    other = task.questions(asked.model_copy(update={"seed": 1}), model)
    assert other.digest != first.digest
    everything = task.questions(shuffled.model_copy(update={"rows": 64}), model)
    assert len(everything.rows) == 20, "what is said twice is asked once"
    assert first.stops == {2, 0}


def test_integers_of_64_bits_come_as_texts() -> None:
    given = {"path": "rows.jsonl", "digest": "sha256:1", "metric": EXACT, "seed": str(2**60)}
    assert Task.model_validate(given).seed == 2**60


def test_a_conversation_is_rendered_by_the_models_own_template(tmp_path: Path, model: Path) -> None:
    said = [("system", "Be short."), ("user", "One?"), ("assistant", "1"), ("user", "Two?")]
    messages = [{"role": role, "content": content} for role, content in said]
    row = {"messages": [*messages, {"role": "assistant", "content": "2"}]}
    asked = written(tmp_path / "a.jsonl", [row], max_answer_tokens=1)
    (found,) = task.questions(asked, with_template(model)).rows
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in said)
    assert tokenizer().decode(found.prompt) == f"{text}<|im_start|>assistant\n"
    assert found.reference == "2"


def test_without_a_template_a_single_text_is_asked_as_it_is(tmp_path: Path, model: Path) -> None:
    (found,) = task.questions(written(tmp_path / "a.jsonl", prompted(1)), model).rows
    assert tokenizer().decode(found.prompt) == "Is 0 a number?"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "no answers"}], "needed are conversations"),
        ([{"messages": [{"role": "user", "content": "?"}]}], "must be the assistant's"),
        ([{"prompt": "word " * 80, "completion": "x"}], "have room"),
        ([{"messages": [{"role": "system", "content": "a"}, *[
            {"role": role, "content": "b"} for role in ("user", "assistant")
        ]]}], "no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_says_why(
    tmp_path: Path, model: Path, rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(JobError, match=said) as raised:
        task.questions(written(tmp_path / "a.jsonl", rows), model)
    assert raised.value.reason == task.INVALID


def test_another_file_than_was_named_is_refused(tmp_path: Path, model: Path) -> None:
    asked = written(tmp_path / "a.jsonl", prompted(2))
    asked.path.write_text("{}")
    with pytest.raises(JobError, match="expected sha256"):
        task.questions(asked, model)


def spec_with(model: Path, asked: Task | None, folder: Path | None = None) -> Spec:
    """A specification for what ``task`` reads of one."""
    nowhere = Path("nowhere")
    return Spec(
        compression_id="compression-1",
        checkpoint_path=model.parent,
        checkpoint_digest="sha256:1",
        evaluation_path=nowhere,
        evaluation_digest="",
        target="openvino-int8",
        artifact_path=nowhere,
        working_directory=nowhere,
        originals_directory=folder,
        task=asked,
    )


def test_both_are_asked_and_what_is_too_long_is_left_out(tmp_path: Path, model: Path) -> None:
    rows = [*prompted(3, "yes"), {"prompt": "word " * 80, "completion": "yes"}]
    rows[0]["completion"] = "no"
    spec = spec_with(model, written(tmp_path / "a.jsonl", rows), tmp_path / "originals")
    original = Parrot("Yes.")
    found = task.measured(spec, original, Parrot("no"))["task"]
    assert (found["rows"], found["skipped_rows"], found["same_answers"]) == (3, 1, 0)
    assert found["original_score"] == pytest.approx(2 / 3)
    assert found["artifact_score"] == pytest.approx(1 / 3)
    again = task.measured(spec, original, Parrot("yes"))["task"]
    assert again["original_score"] == again["artifact_score"]
    assert original.asked == 1, "what the original says is kept"
    assert task.measured(spec_with(model, None), original, Parrot("no")) == {}


def answered_by_the_original(store: Store, folder: Path, count: int, tokens: int) -> Task:
    """So many rows, of which the references are what the original says."""
    model = store.folder / "checkpoint" / "model"
    asked = written(folder / "asked.jsonl", prompted(count), max_answer_tokens=tokens)
    found = task.questions(asked, model)
    prompts = [row.prompt for row in found.rows]
    told = found.texts(evaluate.Original(model).answer(prompts, tokens, found.stops))
    rows = [
        {"prompt": tokenizer().decode(prompt), "completion": text}
        for prompt, text in zip(prompts, told, strict=True)
    ]
    return written(folder / "right.jsonl", rows, max_answer_tokens=tokens)


def test_a_compression_measures_its_task(store: Store, tmp_path: Path) -> None:
    right = answered_by_the_original(store, tmp_path, 6, 6).model_copy(update={"rows": 5})
    spec = store.spec(
        "openvino-fp32", artifact_path=tmp_path / "artifact", working_directory=tmp_path / "work"
    )
    result = store.run(spec.model_copy(update={"task": right}))
    measured = result["measurements"]["task"]
    assert (measured["metric"], measured["rows"], measured["original_score"]) == (EXACT, 5, 1.0)
    assert measured["artifact_score"] >= measured["same_answers"] >= 0.8
    quality = json.loads((tmp_path / "artifact" / "quality.json").read_text())
    assert quality["task"] == measured
    told = convert._measurements_to_proto(measurements_of(result["measurements"])).task
    assert (told.original_score, told.digest) == (1.0, measured["digest"])


def test_what_is_wrong_with_a_task_is_said_before_anything_is_made(
    store: Store, tmp_path: Path
) -> None:
    asked = written(tmp_path / "a.jsonl", [{"text": "no answers"}])
    spec = store.spec(artifact_path=tmp_path / "none", working_directory=tmp_path / "work")
    with pytest.raises(JobError, match="needed are conversations"):
        store.run(spec.model_copy(update={"task": asked}))
    assert not (tmp_path / "work").exists()


def test_a_search_holds_its_candidates_against_the_task(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the smaller candidate answers is made wrong."""
    space = Space([Candidate("safetensors-bf16")], [], [], [Candidate("safetensors")])
    monkeypatch.setattr(auto.hardware, "this_machine", lambda: Hardware(frozenset({"avx2"})))
    monkeypatch.setattr(auto.search, "space_of", lambda machine, inputs: space)
    served = plain.Artifact.answer

    def answer(self: plain.Artifact, prompts: Any, *given: Any) -> Any:
        is_small = self.dtype == "bfloat16"
        return [[5]] * len(prompts) if is_small else served(self, prompts, *given)

    monkeypatch.setattr(plain.Artifact, "answer", answer)
    spec = store.spec(
        "auto", artifact_path=tmp_path / "artifact", working_directory=tmp_path / "work"
    )
    limits = {"max_task_score_decrease": 0.4}
    changes = {"task": answered_by_the_original(store, tmp_path, 4, 4), "gate": limits}
    result = store.run(spec.model_copy(update=changes))
    small, large = result["measurements"]["search"]["trials"]
    assert (small["chosen"], small["broken"], small["task_score"]) == (False, ["quality"], 0.0)
    assert (large["chosen"], large["broken"], large["task_score"]) == (True, [], 1.0)
    measured = measurements_of(result["measurements"])
    assert gate.decide(measured, GatePolicy(**limits)).passed  # type: ignore[arg-type]
