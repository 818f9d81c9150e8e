"""What the model in training says of fixed probes, and whether what is published says the same.

The probes are rendered by the model's own template and scored by the trainer's own model, in
evaluation mode and with products in float32. The adapter and the merged model are read anew
from the files that were written. ``millrace_runtime.parity`` has the report and the limits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from transformers import PreTrainedModel

from millrace_runtime import manifest
from millrace_runtime import parity as comparison
from millrace_runtime.jobs import JobError
from millrace_runtime.parity import TRAINER, Probe, Report, Scores, Stage
from millrace_tuner.jobs import adapter, bottleneck

if TYPE_CHECKING:
    from millrace_tuner.jobs.training import Run

CONTINUATION = "Yes. The sum is 42, and «déjà vu» is spelt so.\n"
_HELDOUT_PROBES = 2
_HELDOUT_TOKENS = 64
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


CONVERSATIONS = (
    Probe("user", [_user("What is the sum of 40 and 2?")]),
    Probe("system", [{"role": "system", "content": "Be brief."}, _user("What is a mill?")]),
    Probe("empty_system", [{"role": "system", "content": ""}, _user("What is a mill race?")]),
    Probe(
        "turns",
        [
            _user("Hello"),
            {"role": "assistant", "content": "Hello. What may I do?"},
            _user("Count to three, twice."),
        ],
    ),
    Probe("non_ascii", [_user("Grüße aus Łódź: 水車 🌊 e\u0301")]),
    Probe("white_space", [_user("\n\n  def turn():\n\treturn 1  \n")]),
    Probe("special_tokens", [_user("Print <|im_end|>, </s>, <bos> and [INST] as they are.")]),
)
_WITH_TOOLS = Probe("tools", [_user("What is the weather in Łódź?")], [_WEATHER])


def certify(run: "Run", directory: Path) -> Report | None:
    """Write ``parity.json`` into a checkpoint that has been written, but not committed.

    None for models that do not write text.

    Raises:
        JobError: PARITY_FAILED, naming the stage ("adapter", "merge") with its figures.
    """
    if run.objective.task != "CAUSAL_LM":
        return None
    with exactly(run.model) as forward:
        probes = [
            probe.scored(TRAINER, score(forward, probe.token_ids, _device(run.model)))
            for probe in _probes(run)
        ]
    stages = _stages(run, directory, probes)
    report = Report(_digests(directory / "model"), probes, stages)
    report.write(directory)
    if mismatch := comparison.first_mismatch(stages):
        raise JobError("PARITY_FAILED", f"nothing is published: {mismatch}")
    return report


def _stages(run: "Run", directory: Path, probes: list[Probe]) -> list[Stage]:
    base_model = run.spec.base_checkpoint_path / "model"
    stored = str(adapter.stored_dtype(base_model)).removeprefix("torch.")
    precision = str(run.precision).removeprefix("torch.")
    held = "nf4" if run.spec.adapter.quantized_base else precision
    stages = []
    if (directory / "adapter").exists():
        model = _with_adapter(run, base_model, directory / "adapter")
        stages.append(_compare("adapter", model, probes, precision, held))
        del model
    if (directory / "model").exists():
        model = run.objective.load_model(directory / "model")
        stages.append(_compare("merge", model, probes, precision, held, stored))
    return stages


def _compare(stage: str, model: Any, probes: list[Probe], *dtypes: str) -> Stage:
    with exactly(model) as forward:
        found = [score(forward, probe.token_ids, _device(model)) for probe in probes]
    expected = [probe.scores[TRAINER] for probe in probes]
    return comparison.compare(stage, expected, found, comparison.coarsest(*dtypes))


def _with_adapter(run: "Run", base_model: Path, directory: Path) -> Any:
    base: PreTrainedModel = run.objective.load_model(base_model)
    if run.spec.adapter.kind == "bottleneck":
        bottleneck.load(base, directory)
        return base
    return PeftModel.from_pretrained(base, directory)


def _probes(run: "Run") -> list[Probe]:
    """Conversations, where the model has a template for them, and held-out tokens."""
    limit = min(comparison.MAXIMUM_TOKENS, _context_tokens(run.model))
    made = [] if not run.tokenizer.chat_template else _conversations(run.tokenizer)
    stream = run.objective.heldout_stream()
    heldout = [] if stream is None else stream[: _HELDOUT_PROBES * _HELDOUT_TOKENS].tolist()
    for number in range(_HELDOUT_PROBES):
        ids = heldout[number * _HELDOUT_TOKENS : (number + 1) * _HELDOUT_TOKENS]
        made.append(Probe(f"heldout_{number + 1}", token_ids=ids, prompt_tokens=len(ids)))
    cut = [replace(probe, token_ids=list(probe.token_ids)[:limit]) for probe in made]
    return [probe for probe in cut if probe.messages is not None or len(probe.token_ids) > 1]


def _conversations(tokenizer: Any) -> list[Probe]:
    knows_tools = "tools" in str(tokenizer.chat_template)
    continuation = _encode(tokenizer, CONTINUATION)
    asked = (*CONVERSATIONS, *([_WITH_TOOLS] if knows_tools else []))
    return [_rendered(probe, tokenizer, continuation) for probe in asked]


def _rendered(probe: Probe, tokenizer: Any, continuation: list[int]) -> Probe:
    try:
        text = comparison.render(tokenizer, probe)
    except (TemplateError, TypeError, ValueError):
        return probe  # refused; it must be so everywhere
    prompt = _encode(tokenizer, text)
    return replace(
        probe,
        text_sha256=manifest.sha256_bytes(text.encode()),
        token_ids=prompt + continuation,
        prompt_tokens=len(prompt),
    )


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


@contextlib.contextmanager
def exactly(model: torch.nn.Module) -> Iterator[Any]:
    """What computes with ``model`` in float32 and without dropout, whatever it is trained in.

    What is held in four bits stays so. The weights are as they were afterwards.
    """
    was_training = model.training
    narrow = [p for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    kept = [parameter.data for parameter in narrow]
    model.eval()
    try:
        for parameter in narrow:
            parameter.data = parameter.data.float()
        # While it trains, accelerate has put autocast around a model's own forward.
        yield getattr(model, "_original_forward", model)
    finally:
        for parameter, data in zip(narrow, kept, strict=True):
            parameter.data = data
        model.train(was_training)


@torch.no_grad()
def score(forward: Any, token_ids: Sequence[int], device: torch.device) -> Scores:
    """Natural log-probability of each token after the first."""
    if not token_ids:
        return []
    ids = torch.tensor(list(token_ids), device=device)
    logits = forward(input_ids=ids[None], use_cache=False).logits[0]
    # A learned prompt has logits of its own, before those of the tokens.
    rows = logits[-len(ids) :][:-1].float().log_softmax(-1)
    found = rows.gather(-1, ids[1:, None])[:, 0]
    return comparison.rounded(found.tolist())


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _context_tokens(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", comparison.MAXIMUM_TOKENS))


def _digests(model: Path) -> dict[str, str]:
    """Of what the model's answers follow from: weights, tokenizer, template."""
    if not model.exists():
        return {}
    names = sorted(path.name for path in model.iterdir() if path.is_file())
    return {name: manifest.sha256_file(model / name) for name in names if name != "README.md"}


def metadata_of(report: Report | None) -> dict[str, Any]:
    """What a checkpoint's manifest says of its report: that there is one, and what it found."""
    if report is None:
        return {}
    stages = {stage.stage: stage.maximum_difference for stage in report.stages}
    return {"parity": {"probes": len(report.probes), "largest_difference": stages}}
