"""The same questions to a base and to what was tuned from it, side by side."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from millrace_client.api import Json, Millrace
from millrace_client.errors import MillraceError

SAMPLE_COUNT = 3
_LINES_READ = 100
_TEXT_WORDS = 12
# Their models tell classes or scores, or are not asked like this.
_SILENT = ("reward", "classification", "sequence")
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Prompt:
    """A question to a model: messages, or a text to go on from where there are none.

    ``wanted`` is what the file says to it; empty where nobody knows.
    """

    messages: tuple[Json, ...] = ()
    text: str = ""
    wanted: str = ""

    @property
    def shown(self) -> str:
        return text_of(self.messages[-1].get("content")) if self.messages else self.text


@dataclass(frozen=True)
class Sample:
    prompt: Prompt
    before: str
    after: str


def asked(question: str) -> Prompt:
    """What a user typed."""
    return Prompt(({"role": "user", "content": question},))


def prompts_of(rows: Iterable[Json], count: int) -> list[Prompt]:
    """The first different prompts in rows of a training file, in any form that tuning takes."""
    found: dict[str, Prompt] = {}
    for row in rows:
        prompt = prompt_of(row) if isinstance(row, dict) else None
        if prompt is not None and prompt.shown.strip():
            found.setdefault(json.dumps([prompt.messages, prompt.text]), prompt)
        if len(found) == count:
            break
    return list(found.values())


def prompt_of(row: Json) -> Prompt | None:
    """What a row asks, without its answer; None where it is of no form that asks anything."""
    if isinstance(row.get("input"), dict):  # OpenAI's preferences
        return _conversation(row["input"].get("messages"), row.get("preferred_output"))
    if "conversations" in row:  # ShareGPT
        return _conversation(_from_sharegpt(row["conversations"]), None)
    if "messages" in row:
        return _conversation(row["messages"], None)
    if "instruction" in row:  # Alpaca
        parts = (row["instruction"], row.get("input"))
        question = "\n".join(part for part in parts if isinstance(part, str) and part)
        return _conversation(question, row.get("output"))
    if "prompt" in row:
        return _conversation(row["prompt"], row.get("completion") or row.get("chosen"))
    return _text(row["text"]) if isinstance(row.get("text"), str) else None


def _conversation(given: object, wanted: object) -> Prompt | None:
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        return None
    answers = [index for index, one in enumerate(given) if one.get("role") == "assistant"]
    if answers and answers[-1] == len(given) - 1:
        wanted, given = given[-1].get("content"), given[:-1]
    # A weight says what to learn from, and is no part of a question.
    messages = tuple({k: v for k, v in one.items() if k != "weight"} for one in given)
    return Prompt(messages, wanted=text_of(wanted)) if messages else None


def _text(whole: str) -> Prompt | None:
    words = whole.split(" ")
    kept = min(_TEXT_WORDS, (len(words) + 1) // 2)
    return Prompt(text=" ".join(words[:kept]), wanted=" ".join(words[kept : 3 * kept]))


def _from_sharegpt(turns: object) -> list[Json]:
    if not isinstance(turns, list):
        return []
    return [
        {"role": _ROLES.get(str(turn.get("from")), turn.get("from")), "content": turn.get("value")}
        for turn in turns
        if isinstance(turn, dict)
    ]


def text_of(content: object) -> str:
    """The words of a message, of its parts, or of the last of several messages."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        if isinstance(content[-1], dict) and "content" in content[-1]:
            return text_of(content[-1]["content"])
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def prompts_from_files(client: Millrace, job: Json, count: int) -> list[Prompt]:
    """Of the job's validation file when it has one, else of what it learned from.

    Raises:
        MillraceError: the file cannot be read any more.
        ValueError: it is no JSONL.
    """
    file = job.get("validation_file") or job["training_file"]
    return prompts_of(client.first_lines(file, max(_LINES_READ, count)), count)


def why_silent(job: Json) -> str:
    """Why a job's model is not asked; empty when it can be."""
    kind = (job.get("method") or {}).get("type", "")
    if kind in _SILENT:
        return f"a model tuned by the method {kind} writes no answers to compare"
    return "" if job.get("fine_tuned_model") else "the job made no model that is served"


def compare(
    client: Millrace, job: Json, prompts: Sequence[Prompt], max_tokens: int
) -> Iterator[Sample | str]:
    """Both models' answers to each prompt; a sentence once for a model that cannot answer."""
    failed: set[str] = set()
    for prompt in prompts:
        answers = []
        for model in (job["model"], job["fine_tuned_model"]):
            try:
                answers.append(
                    "-" if model in failed else _answer(client, model, prompt, max_tokens)
                )
            except MillraceError as error:
                failed.add(model)
                answers.append("-")
                yield f"{model} cannot answer: {error}"
        if len(failed) < 2:
            yield Sample(prompt, *answers)


def _answer(client: Millrace, model: str, prompt: Prompt, max_tokens: int) -> str:
    body: Json = {"model": model, "temperature": 0, "max_tokens": max_tokens}
    if prompt.messages:
        chat = {**body, "messages": list(prompt.messages)}
        answer = client.request("POST", "/v1/chat/completions", json=chat)
        return answer["choices"][0]["message"].get("content") or ""
    answer = client.request("POST", "/v1/completions", json={**body, "prompt": prompt.text})
    return str(answer["choices"][0]["text"])


def show_samples(out: Console, job: Json, samples: Sequence[Sample]) -> None:
    """A table on a terminal; elsewhere a line each, in JSON's quotes so that it stays one."""
    models = {"before": str(job["model"]), "after": str(job["fine_tuned_model"])}
    if not out.is_terminal:
        for number, sample in enumerate(samples, 1):
            for name, value in _fields(sample):
                whose = f" {models[name]}" if name in models else ""
                line = f"sample {number} {name}{whose}: {json.dumps(value, ensure_ascii=False)}"
                out.print(line, markup=False)
        return
    table = Table(show_lines=True, header_style="bold", expand=True)
    wanted = any(sample.prompt.wanted for sample in samples)
    titles = ["prompt", f"before\n{models['before']}", f"after\n{models['after']}"]
    for title in [*titles, "in the file"] if wanted else titles:
        table.add_column(Text(title), overflow="fold", ratio=1)
    for sample in samples:
        cells = dict(_fields(sample))
        row = [cells["prompt"], cells["before"], cells["after"]]
        table.add_row(*map(Text, [*row, cells.get("wanted", "-")] if wanted else row))
    out.print(table, soft_wrap=False)


def sample_document(job: Json, sample: Sample) -> Json:
    """For programs."""
    models = {"before_model": job["model"], "after_model": job["fine_tuned_model"]}
    return {"object": "fine_tuning.job.sample", **models, **dict(_fields(sample))}


def _fields(sample: Sample) -> Iterator[tuple[str, str]]:
    yield "prompt", sample.prompt.shown
    yield "before", sample.before
    yield "after", sample.after
    if sample.prompt.wanted:
        yield "wanted", sample.prompt.wanted
