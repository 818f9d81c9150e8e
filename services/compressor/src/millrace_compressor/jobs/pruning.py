"""The format ``safetensors-pruned``: fewer layers, groups of heads or hidden units.

What is taken away is what matters least on calibration data (``importance.py``), in rounds, each
of which measures anew. What remains is a plain model of the same class, in the checkpoint's own
precision, with its tokenizer byte for byte; any engine of safetensors serves it.

Without shares in the recipe a quarter of the feed-forward's units goes: they are most of a
layer's weights, every model has enough of them to tell which matter, and at the sizes that are
trained here taking width loses less than taking depth (Muralidharan et al. 2024,
arXiv:2407.14679, "best practices" 2).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from millrace_compressor.jobs import anatomy, importance, plain
from millrace_compressor.jobs.anatomy import Size
from millrace_compressor.jobs.format import Conversion, Pruning, Recovered
from millrace_compressor.jobs.importance import Importances
from millrace_runtime.jobs import JobError

REPORT_FILE = "pruning.json"
_DEFAULT_WIDTH = 0.25
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHARES = frozenset({"depth", "heads", "width"})
_COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
)


@dataclass(frozen=True)
class Taken:
    """What one round took: numbers of layers as they were before it."""

    layers: Sequence[int]
    groups: int
    units: int


class Pruned(plain.Plain):
    """A checkpoint with less in it, run by transformers."""

    def convert(self, conversion: Conversion, output: Path) -> None:
        """
        Raises:
            JobError: CHECKPOINT_INVALID, ARCHITECTURE_UNSUPPORTED, CALIBRATION_DATA_MISSING,
                PRUNING_SKIPPED (a share takes nothing of so small a model).
        """
        if conversion.recovered is not None:
            take_recovered(conversion, conversion.recovered, output)
            return
        shares = wanted(conversion.recipe.pruning)
        model, dtype = _load(conversion.model)
        anatomy.require_known(model)
        anatomy.make_head_width_explicit(model)
        after = remaining(anatomy.size_of(model), shares)
        rounds = prune(model, conversion.calibration(), after, shares.rounds)
        output.mkdir(parents=True, exist_ok=True)
        model.to(dtype).save_pretrained(output)
        copy_text_files(conversion.model, output)
        _report(conversion, output, rounds=[asdict(taken) for taken in rounds])

    def inspect(self, output: Path) -> Mapping[str, float]:
        """
        Raises:
            JobError: PRUNING_SKIPPED, when the tensors are more than the recipe leaves.
        """
        report = json.loads((output / REPORT_FILE).read_text())
        shares = Pruning.model_validate(report["recipe"])
        expected = remaining(Size(**report["before"]), shares)
        found = size_of_tensors(output)
        if found != expected:
            raise JobError("PRUNING_SKIPPED", f"the artifact has {found}, not {expected}")
        parameters, before = _parameters(output), report["parameters"]["before"]
        if parameters >= before:
            message = f"the artifact has {parameters} parameters, the checkpoint has {before}"
            raise JobError("PRUNING_SKIPPED", message)
        return super().inspect(output)

    def open(self, output: Path, threads: int) -> "Artifact":
        return Artifact(output)

    def exact(self, output: Path, threads: int) -> "Artifact":
        return Artifact(output)


class Artifact(plain.Artifact):
    """As a plain one; it does not say what the checkpoint says, and is not meant to."""

    @property
    def dtype(self) -> str:
        return "pruned"


def wanted(pruning: Pruning) -> Pruning:
    """The recipe, with the default where it says no share."""
    if pruning.model_fields_set & _SHARES:
        return pruning
    return pruning.model_copy(update={"width": _DEFAULT_WIDTH})


def remaining(before: Size, shares: Pruning) -> Size:
    """What the recipe leaves of a model; at least one of everything.

    Raises:
        JobError: PRUNING_SKIPPED, naming the share that takes nothing.
    """
    after = Size(
        layers=_left(before.layers, shares.depth, "depth", "layers"),
        groups=_left(before.groups, shares.heads, "heads", "key/value groups"),
        units=_left(before.units, shares.width, "width", "hidden units"),
    )
    if after == before:
        raise JobError("PRUNING_SKIPPED", "the recipe takes nothing away; depth, heads or width")
    return after


def _left(count: int, share: float, field: str, what: str) -> int:
    taken = min(round(count * share), count - 1)
    if share > 0 and taken == 0:
        message = f"{field} {share:g} takes none of the {count} {what} away; one must stay"
        raise JobError("PRUNING_SKIPPED", message)
    return count - taken


def prune(model: Any, windows: Any, after: Size, rounds: int) -> list[Taken]:
    """Take away what matters least until ``after`` remains; what each round took.

    Args:
        windows: token ids, (windows, positions).
    """
    before = anatomy.size_of(model)
    taken = []
    for number in range(1, rounds + 1):
        goal = _on_the_way(before, after, number / rounds)
        now = anatomy.size_of(model)
        if goal == now:
            continue
        found = importance.measure(
            model, windows, groups=goal.groups < now.groups, units=goal.units < now.units
        )
        taken.append(_take(model, found, now, goal))
    return taken


def _take(model: Any, found: importance.Importance, now: Size, goal: Size) -> Taken:
    if found.groups is not None:
        anatomy.keep_groups(model, [_best(row, goal.groups) for row in found.groups])
    if found.units is not None:
        anatomy.keep_units(model, [_best(row, goal.units) for row in found.units])
    kept = _best(found.layers, goal.layers)
    if goal.layers < now.layers:
        anatomy.keep_layers(model, kept)
    gone = [number for number in range(now.layers) if number not in kept]
    return Taken(gone, now.groups - goal.groups, now.units - goal.units)


def _on_the_way(before: Size, after: Size, part: float) -> Size:
    def between(start: int, end: int) -> int:
        return start - round((start - end) * part)

    return replace(
        after,
        layers=between(before.layers, after.layers),
        groups=between(before.groups, after.groups),
        units=between(before.units, after.units),
    )


def _best(importances: Importances, count: int) -> list[int]:
    """The ``count`` places of the highest, in their order; of equals the earlier one stays."""
    ranked = np.argsort(-importances, kind="stable")[:count]
    return sorted(int(place) for place in ranked)


def take_recovered(conversion: Conversion, recovered: Recovered, output: Path) -> None:
    """Make the artifact of what a tuning job has made of the student.

    The job's trainer may have written its tokenizer's special tokens into the configuration; they
    are the checkpoint's own again.
    """
    model, made = conversion.model, recovered.checkpoint / "model"
    plain.convert(made, output)
    copy_text_files(model, output)
    own = json.loads((model / "config.json").read_text())
    config = json.loads((made / "config.json").read_text())
    config |= {name: own.get(name) for name in _SPECIAL_TOKENS}
    _write_json(output / "config.json", config)
    if (model / "generation_config.json").exists():
        shutil.copyfile(model / "generation_config.json", output / "generation_config.json")
    told = recovered.student / "model" / REPORT_FILE  # not where another machine has pruned
    rounds = json.loads(told.read_text())["rounds"] if told.exists() else []
    lineage = {"job": recovered.job, "checkpoint_digest": recovered.digest}
    _report(conversion, output, rounds=rounds, recovery=lineage)


def _report(conversion: Conversion, output: Path, **more: Any) -> None:
    model = conversion.model
    report = {
        "before": asdict(size_of_tensors(model)),
        "after": asdict(size_of_tensors(output)),
        "parameters": {"before": _parameters(model), "after": _parameters(output)},
        "recipe": wanted(conversion.recipe.pruning).model_dump(),
        **more,
    }
    _write_json(output / REPORT_FILE, report)


def size_of_tensors(output: Path) -> Size:
    """What the files of weights hold, whatever the configuration says."""
    shapes = _shapes(output)
    config = json.loads((output / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    numbers = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
    keys = {shape[0] for name, shape in shapes.items() if name.endswith("k_proj.weight")}
    units = {shape[0] for name, shape in shapes.items() if name.endswith("gate_proj.weight")}
    if not numbers or len(keys) != 1 or len(units) != 1:
        message = f"the layers differ: keys of {sorted(keys)}, units of {sorted(units)}"
        raise JobError("PRUNING_SKIPPED", message)
    return Size(len(numbers), keys.pop() // head, units.pop())


def copy_text_files(model: Path, output: Path) -> None:
    """The tokenizer, the template and the card, byte for byte."""
    for name in _COPIED_FILES:
        if (model / name).exists():
            shutil.copyfile(model / name, output / name)


def _load(model: Path) -> tuple[Any, torch.dtype]:
    """The model in float32, to measure on, and the precision that it is kept in."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype="auto", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise JobError("CHECKPOINT_INVALID", f"the model cannot be loaded: {error}") from error
    dtype = loaded.dtype
    return loaded.float().eval(), dtype


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def _parameters(folder: Path) -> int:
    return sum(int(np.prod(shape)) for shape in _shapes(folder).values())


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by its name; no weight is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob(plain.WEIGHTS)):
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            for name in file.keys():  # noqa: SIM118  # not a dict
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes
