"""Whether an artifact is the model that was trained, by the probes that the tuning job left.

Four questions, each a stage of the report, and each answered from the artifact itself:

merge         the checkpoint's weights are those that the job compared, and score as they did
template      the artifact's tokenizer and template make the same token ids of the conversations
export        what was exported scores as the checkpoint does
quantisation  so does it in the artifact's few bits

An artifact of few bits is exported without a step in between. Only when it is beyond its limits is
the checkpoint exported once more without quantisation, to say which of the two is at fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import AutoTokenizer

from millrace_compressor.jobs.format import Scored
from millrace_runtime import manifest
from millrace_runtime import parity as comparison
from millrace_runtime.parity import ARTIFACT, LIMITS, TRAINER, ParityError, Probe, Report, Stage

_WEIGHTS = (".safetensors", ".safetensors.index.json")
# What these differ by is the export's doing, or what was meant to be taken away.
_UNQUANTISED = frozenset({"float32", "float16", "bfloat16", "pruned"})
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Reexport = Callable[[], Scored]


def certify(
    checkpoint: Path,
    converted: Path,
    original: Scored,
    artifact: Scored,
    *,
    dtype: str,
    reexport: Reexport,
) -> dict[str, Any] | None:
    """Write the artifact's ``parity.json`` and return what the gate judges; None: no probes.

    Args:
        dtype: what the artifact's weights are rounded to: "float32", "int8", …
        reexport: exports the checkpoint without quantisation.
    """
    if not (checkpoint / comparison.REPORT_NAME).exists():
        promised = manifest.read(checkpoint)[0].metadata.get("parity")
        return {"probes": promised["probes"], "stages": []} if promised else None
    try:
        report = comparison.read(checkpoint)
    except ParityError as error:
        stage = Stage("template", mismatch=str(error))
        return {"probes": 0, "stages": [asdict(stage)]}
    expected = [probe.scores[TRAINER] for probe in report.probes]
    before = [_score(original, probe) for probe in report.probes]
    after = [_score(artifact, probe) for probe in report.probes]
    made = [
        _merge(report, checkpoint / "model", expected, before),
        _template(report, converted),
        _last(report, before, after, dtype, reexport),
    ]
    told = [stage for stage in report.stages if stage.stage != "merge"]
    probes = [
        probe.scored(ARTIFACT, scores) for probe, scores in zip(report.probes, after, strict=True)
    ]
    Report(report.files, probes, [*told, *made]).write(converted)
    return {"probes": len(probes), "stages": [asdict(stage) for stage in (*told, *made)]}


def _merge(report: Report, model: Path, expected: Any, before: Any) -> Stage:
    """The job's own limits: they say how coarsely the merged weights were rounded."""
    told = next((stage for stage in report.stages if stage.stage == "merge"), Stage("merge"))
    changed = _changed(report, model, lambda name: name.endswith(_WEIGHTS))
    if changed:
        return Stage("merge", mismatch=changed)
    limits = comparison.Limits(told.mean_limit, told.maximum_limit)
    return comparison.compare("merge", expected, before, limits)


def _template(report: Report, converted: Path) -> Stage:
    different = "" if len(report.probes) else "there are no probes"
    tokens = 0
    try:
        tokenizer = AutoTokenizer.from_pretrained(converted, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        return Stage("template", mismatch=f"the tokenizer cannot be loaded: {error}")
    for probe in report.probes:
        if probe.messages is not None:
            tokens += probe.prompt_tokens
            different = different or _difference(tokenizer, probe)
    different = different or _changed(report, converted, lambda name: name in _TEXT_FILES)
    return Stage("template", tokens=tokens, mismatch=different)


def _difference(tokenizer: Any, probe: Probe) -> str:
    """How the prompt of a probe differs from what it was; empty: it does not."""
    try:
        text = comparison.render(tokenizer, probe)
    except (TemplateError, TypeError, ValueError) as error:
        return f"the probe {probe.name!r} is refused: {error}" if probe.token_ids else ""
    if not probe.token_ids:
        return f"the probe {probe.name!r} was refused in training, and is rendered now"
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    scored = list(probe.token_ids)[: len(ids)]
    if len(ids) != probe.prompt_tokens or scored != ids[: len(scored)]:
        return f"the probe {probe.name!r} becomes other token ids than in training"
    if manifest.sha256_bytes(text.encode()) != probe.text_sha256:
        return f"the probe {probe.name!r} becomes another text than in training"
    return ""


def _changed(report: Report, folder: Path, is_meant: Callable[[str], bool]) -> str:
    """The first file that is not as the tuning job wrote it; empty: none is."""
    for name, digest in sorted(report.files.items()):
        path = folder / name
        if is_meant(name) and (not path.exists() or manifest.sha256_file(path) != digest):
            return f"{name} is not as it was trained with"
    return ""


def _last(report: Report, before: Any, after: Any, dtype: str, reexport: Reexport) -> Stage:
    limits = LIMITS[dtype]
    if dtype in _UNQUANTISED:
        return comparison.compare("export", before, after, limits)
    made = comparison.compare("quantisation", before, after, limits)
    if made.mismatch:
        exported = reexport()
        plain = [_score(exported, probe) for probe in report.probes]
        unquantised = comparison.compare("export", before, plain, LIMITS["float32"])
        return unquantised if unquantised.mismatch else made
    return made


def _score(model: Scored, probe: Probe) -> list[float | None]:
    """Natural log-probability of each token after the first."""
    ids: Sequence[int] = probe.token_ids
    if not ids:
        return []
    logits = torch.from_numpy(np.array(model.logits(np.array([ids], np.int64))[0, :-1]))
    following = torch.tensor(list(ids[1:]))[:, None]
    rows = logits.float().log_softmax(-1)
    return comparison.rounded(rows.gather(-1, following)[:, 0].tolist())
