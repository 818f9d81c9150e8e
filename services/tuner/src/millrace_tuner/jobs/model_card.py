"""A model's card: what it is made of and how well it does, written by what made it.

In the form that Hugging Face's hub reads (https://huggingface.co/docs/hub/model-cards): YAML,
then Markdown. Everything follows from the job and what was measured, so the same job writes the
same bytes; what nobody stated is said to be not stated.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from millrace_runtime import parity
from millrace_runtime.parity import Report
from millrace_tuner.jobs.specification import Spec

CARD_NAME = "README.md"
_NOT_STATED = "other"
_LICENSE = re.compile(r"^license:\s*[\"']?([^\s\"'#]+)", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_TASKS = {"reward": "text-classification", "classification": "text-classification"}
_COUNTS = ("training_examples", "heldout_examples", "truncated_examples", "skipped_examples")


def write(spec: Spec, directory: Path, metadata: Mapping[str, Any]) -> None:
    """Write the card of a written checkpoint's model; where there is none, of its adapter.

    ``metadata`` is what the checkpoint's manifest will say.
    """
    report = parity.read(directory) if (directory / parity.REPORT_NAME).exists() else None
    is_adapter = not (directory / "model").exists()
    place = directory / ("adapter" if is_adapter else "model")
    license = inherited_license(spec.base_checkpoint_path / "model")
    parts = (
        *_front_matter(spec, metadata, license, is_adapter=is_adapter),
        *_introduction(spec, metadata),
        *_data(spec, metadata),
        *_measurements(metadata),
        *_parity(report),
        *_lineage(spec, metadata, license),
    )
    (place / CARD_NAME).write_text("\n".join(parts) + "\n", encoding="utf-8")


def inherited_license(base_model: Path) -> str:
    """What the base's own card says; "other" when it says nothing."""
    card = base_model / CARD_NAME
    if not card.is_file():
        return _NOT_STATED
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    found = _LICENSE.search(front[1]) if front else None
    return found[1] if found else _NOT_STATED


def _front_matter(
    spec: Spec, metadata: Mapping[str, Any], license: str, *, is_adapter: bool
) -> Iterator[str]:
    task = _TASKS.get(spec.method.kind, "text-generation")
    yield "---"
    yield f"base_model: {_quoted(spec.base_version)}"
    yield f"library_name: {'peft' if is_adapter else 'transformers'}"
    yield f"license: {license}"
    if license == _NOT_STATED:
        yield "license_name: not-stated"
    yield f"pipeline_tag: {task}"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("millrace", spec.method.kind, spec.adapter.kind))
    yield "datasets:"
    yield from (f"- {_quoted(digest)}" for _, digest in _files(spec))
    yield "model-index:"
    yield f"- name: {_quoted(spec.model)}"
    yield "  results:"
    yield f"  - task: {{type: {task}}}"
    yield f"    dataset: {{name: held-out examples, type: {metadata['heldout_source']}}}"
    yield "    metrics:"
    for name, value in sorted(metadata["valid"].items()):
        yield f"    - {{type: {name}, value: {_number(value)}}}"
    yield "---"


def _introduction(spec: Spec, metadata: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {spec.model}"
    yield ""
    yield (
        f"Tuned from `{spec.base_version}` by the job `{spec.job}`, with the method "
        f"`{spec.method.kind}`. This is the checkpoint of step {metadata['step']} "
        f"(epoch {metadata['epoch']}{', the final one' if metadata['final'] else ''})."
    )
    yield ""
    yield "## Method"
    yield ""
    yield from _table(("parameter", "value"), _settings(metadata))


def _settings(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group in ("method", "config"):
        for name, value in metadata[group].items():
            inner = value.items() if isinstance(value, Mapping) else [(None, value)]
            for part, one in inner:
                yield (f"{name}.{part}" if part else name), _quoted(one)


def _data(spec: Spec, metadata: Mapping[str, Any]) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield from _table(("file", "digest"), _files(spec))
    counted = [(name.replace("_", " "), str(metadata[name])) for name in _COUNTS]
    yield from _table(
        ("count", "value"), [*counted, ("trained tokens", str(metadata["trained_tokens"]))]
    )


def _files(spec: Spec) -> list[tuple[str, str]]:
    found = [("training file", spec.training_file_sha256)]
    if spec.validation_file_sha256 is not None:
        found.append(("validation file", spec.validation_file_sha256))
    return found


def _measurements(metadata: Mapping[str, Any]) -> Iterator[str]:
    yield "## Measurements"
    yield ""
    yield f"On held-out examples ({metadata['heldout_source']}), before and after."
    yield ""
    base = metadata["base_valid"]
    rows = [
        (name, _number(base[name]) if name in base else "not measured", _number(value))
        for name, value in sorted(metadata["valid"].items())
    ]
    yield from _table(("measurement", "base", "tuned"), rows)
    if "forgetting" in metadata:
        yield "### Forgetting"
        yield ""
        found = metadata["forgetting"].items()
        yield from _table(("what", "value"), [(name, _quoted(value)) for name, value in found])


def _parity(report: Report | None) -> Iterator[str]:
    yield "## Parity"
    yield ""
    if report is None:
        yield "Not compared: the model writes no text."
        yield ""
        return
    yield (
        "Differences of log-probabilities, in nats, from the model in training, over "
        f"{len(report.probes)} fixed probes. What is made of this checkpoint is compared again: "
        "see `parity.json` of the artifact."
    )
    yield ""
    rows = [
        (
            stage.stage,
            str(stage.tokens),
            f"{_number(stage.mean_difference)} of {_number(stage.mean_limit)}",
            f"{_number(stage.maximum_difference)} of {_number(stage.maximum_limit)}",
        )
        for stage in report.stages
    ]
    yield from _table(("form", "tokens", "mean", "largest"), rows)


def _lineage(spec: Spec, metadata: Mapping[str, Any], license: str) -> Iterator[str]:
    yield "## Lineage"
    yield ""
    rows = [
        ("base version", spec.base_version),
        ("base checkpoint", spec.base_checkpoint_digest),
        ("specification", spec.digest),
    ]
    if spec.companion_digest is not None:
        rows.append(("other model of the method", spec.companion_digest))
    if "best_step" in metadata:
        rows.append(("weights of step", str(metadata["best_step"])))
    yield from _table(("what", "which"), rows)
    yield "## Use and limits"
    yield ""
    yield "* Intended use: not stated."
    yield "* Limits, risks and biases: not stated; those of the base and of the data apply."
    stated = "not stated" if license == _NOT_STATED else f"{license}, as of the base"
    yield f"* License: {stated}."


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _quoted(value: Any) -> str:
    """As JSON, which is YAML too."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.6g}"
