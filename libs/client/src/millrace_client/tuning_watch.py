"""Watching a fine-tuning job to its end: live on a terminal, lines in a pipe, JSON for programs."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import typer
from rich.console import Console
from rich.live import Live

from millrace_client import output, text, tuning_samples
from millrace_client.api import Json, Millrace
from millrace_client.errors import MillraceError
from millrace_client.tuning_feed import EVENT, Away, Update, follow
from millrace_client.tuning_samples import Prompt, Sample
from millrace_client.tuning_state import Tuning
from millrace_client.tuning_view import checkpoint_line, event_line, picture

_REDRAWN_PER_SECOND = 4
_LEFT = 130  # as a shell says of a program that Ctrl-C ended
# What to do, by the reason of a failure.
_ADVICE = {
    "training_diverged": "lower --learning-rate-multiplier and create the job again",
    "invalid_example": "mend the line, and create the job again with the new file",
    "empty_file": "give a file with examples in it",
    "too_few_examples": "add examples, and create the job again",
    "nothing_to_learn": "give examples with answers of the assistant in them",
    "context_too_short": "shorten the examples, or set --max-tokens",
    "adapter_target_unknown": "set --target-modules to layers that the base has",
    "chat_template_missing": "tune by --method pretraining, or a base that has a chat template",
    "compression_rejected": "see: millrace compressions list; its deployment's gate says how much "
    "may be lost",
    "rollout_reversed": "see: millrace rollouts list",
    "version_quarantined": "see: millrace versions",
}


@dataclass(frozen=True)
class Wish:
    """How a job is watched.

    Attributes:
        questions: what to ask before and after; none: some of the job's own file.
        sample_count: how many of those; 0: nothing is asked.
        max_tokens: of each answer.
    """

    as_json: bool = False
    questions: Sequence[str] = ()
    sample_count: int = tuning_samples.SAMPLE_COUNT
    max_tokens: int = 96


class Screen(Protocol):
    """What shows updates."""

    def show(self, update: Update) -> None: ...
    def show_checkpoint(self, checkpoint: Json) -> None: ...


class Lines:
    """A line an event, for pipes and logs."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._is_away = False

    def show(self, update: Update) -> None:
        is_away = isinstance(update, Away)
        if isinstance(update, Away):
            if not self._is_away:
                self._print(f"{text.clock(time.time())} waiting: {update.reason}")
        elif update["object"] == EVENT:
            self._print(event_line(update))
        self._is_away = is_away

    def show_checkpoint(self, checkpoint: Json) -> None:
        self._print(checkpoint_line(checkpoint))

    def _print(self, line: str) -> None:
        self._out.print(line, markup=False)


class JsonLines:
    """An object a line, for programs: jobs, events and checkpoints as the API has them."""

    def show(self, update: Update) -> None:
        if not isinstance(update, Away):
            print_json_line(update)

    def show_checkpoint(self, checkpoint: Json) -> None:
        print_json_line(checkpoint)


class Picture:
    """The live view redraws itself from what is known."""

    def show(self, update: Update) -> None:
        pass

    def show_checkpoint(self, checkpoint: Json) -> None:
        pass


def watch_job(client: Millrace, job: str, wish: Wish) -> None:
    """Follow a job to its end, and compare what it made with its base.

    Raises:
        typer.Exit: 1: it did not succeed; 130: the user left.
    """
    tuning = Tuning(time.monotonic)
    try:
        with _screen(tuning, wish) as screen:
            for update in follow(client, job):
                tuning.take(update)
                screen.show(update)
                if _tells_checkpoint(update, tuning.checkpoints):
                    _read_checkpoints(client, job, tuning, screen)
    except KeyboardInterrupt:
        _notes(wish).print(
            f"\nno longer watching; {job} goes on.\n"
            f"watch it again: millrace tune watch {job}\n"
            f"stop it:        millrace tune cancel {job}",
            markup=False,
        )
        raise typer.Exit(_LEFT) from None
    _conclude(client, tuning.job, wish)


@contextmanager
def _screen(tuning: Tuning, wish: Wish) -> Iterator[Screen]:
    out = output.console()
    if wish.as_json:
        yield JsonLines()
    elif not out.is_terminal:
        yield Lines(out)
    else:
        with _live(lambda: picture(tuning, time.time())):
            yield Picture()


def _live(render: Callable[[], object]) -> Live:
    # A console of its own: what is redrawn must be cut to the terminal, or it leaves remains.
    return Live(
        console=Console(highlight=False),
        get_renderable=render,  # type: ignore[arg-type]  # a picture is a RenderableType
        refresh_per_second=_REDRAWN_PER_SECOND,
    )


def _tells_checkpoint(update: Update, known: Sequence[Json]) -> bool:
    if isinstance(update, Away) or update["object"] != EVENT:
        return False
    step = (update.get("data") or {}).get("step")
    is_new = step not in [checkpoint["step_number"] for checkpoint in known]
    return is_new and str(update["message"]).startswith("Checkpoint created")


def _read_checkpoints(client: Millrace, job: str, tuning: Tuning, screen: Screen) -> None:
    """The event names no model: the list of checkpoints does."""
    try:
        found = client.tuning_jobs.children(job, "checkpoints")
    except MillraceError:
        return  # the next one brings it
    known = {checkpoint["id"] for checkpoint in tuning.checkpoints}
    tuning.checkpoints = found[::-1]
    for checkpoint in tuning.checkpoints:
        if checkpoint["id"] not in known:
            screen.show_checkpoint(checkpoint)


def _conclude(client: Millrace, job: Json, wish: Wish) -> None:
    notes = _notes(wish)
    if job["status"] == "succeeded":
        notes.print(_success(job), markup=False)
        if wish.sample_count or wish.questions:
            _compare(client, job, wish)
        return
    if job["status"] == "paused":
        notes.print(f"{job['id']} is paused; go on: millrace tune resume {job['id']}", markup=False)
    elif job["status"] == "cancelled":
        notes.print(f"{job['id']} was cancelled; its checkpoints stay", markup=False)
    else:
        _explain(notes, job)
    raise typer.Exit(1)


def _success(job: Json) -> str:
    took = text.duration(max(0.0, float(job.get("finished_at") or 0) - job["created_at"]))
    tokens = f", {job['trained_tokens']:,} tokens learned" if job.get("trained_tokens") else ""
    model = job.get("fine_tuned_model")
    answer = "" if tuning_samples.why_silent(job) else f"\ntalk to it: millrace chat {model}"
    return f"{job['id']} succeeded after {took}{tokens}{answer}"


def _explain(notes: Console, job: Json) -> None:
    error = job.get("error") or {"code": "unknown", "message": "nobody said why"}
    code = error["code"]
    notes.print(f"{job['id']} failed: {code}: {error['message']}", style="red", markup=False)
    usual = f"see: millrace tune events {job['id']}, millrace logs tuner, millrace doctor"
    notes.print(f"what to do: {_ADVICE.get(code, usual)}", markup=False)


def _compare(client: Millrace, job: Json, wish: Wish) -> None:
    notes = _notes(wish)
    if reason := tuning_samples.why_silent(job):
        notes.print(f"no samples: {reason}", markup=False)
        return
    samples = []
    for found in tuning_samples.compare(client, job, _prompts(client, job, wish), wish.max_tokens):
        if isinstance(found, Sample):
            samples.append(found)
        else:
            notes.print(found, markup=False)
    if wish.as_json:
        for sample in samples:
            print_json_line(tuning_samples.sample_document(job, sample))
    elif samples:
        tuning_samples.show_samples(output.console(), job, samples)


def _prompts(client: Millrace, job: Json, wish: Wish) -> list[Prompt]:
    if wish.questions:
        return [tuning_samples.asked(question) for question in wish.questions]
    try:
        found = tuning_samples.prompts_from_files(client, job, wish.sample_count)
    except (MillraceError, ValueError) as error:
        _notes(wish).print(f"no samples: the job's file cannot be read ({error})", markup=False)
        return []
    if not found:
        _notes(wish).print("no samples: the job's file asks nothing; see --sample", markup=False)
    return found


def _notes(wish: Wish) -> Console:
    """Where words go: beside the JSON, when programs read that."""
    return (
        Console(stderr=True, soft_wrap=True, highlight=False)
        if wish.as_json
        else (output.console())
    )


def print_json_line(document: Json) -> None:
    """JSON on one line, at once."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
