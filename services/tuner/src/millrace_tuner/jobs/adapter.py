"""Adapters, most of them PEFT's, and the models that are merged from them.

A merged model is made from the base as it was committed, read anew, and never from the model
in training: merging there and undoing it again would leave rounding errors in its weights.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as _IA3_FEEDFORWARD,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as _IA3_TARGETS,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import adaptive_rank, bottleneck, checkpoint
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter

_HEADS = frozenset(("score", "classifier"))  # of classes, trained whole in any case
_KEEP_TIES = frozenset(("lora", "dora", "rslora"))
_SETS = ("target_modules", "feedforward_modules", "modules_to_save")

Load = Callable[[Path], PreTrainedModel]


def load_base(model_directory: Path) -> PreTrainedModel:
    """The model of a checkpoint, in float32 whatever it is stored in; no code of its own is run.

    Raises:
        JobError: BASE_MODEL_UNSUPPORTED, when transformers cannot load it.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model_directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        message = f"the base checkpoint's model cannot be loaded: {error}"
        raise JobError("BASE_MODEL_UNSUPPORTED", message) from error
    return model


def prepare(spec: Spec, model: PreTrainedModel, precision: torch.dtype) -> None:
    """Do to the base, in place, what must be done before a trainer adapts it.

    Raises:
        JobError: ADAPTER_TARGET_UNKNOWN when the model has no module of a given name.
    """
    given = spec.adapter
    if given.kind == "none":
        return
    _require_modules(model, given)
    if given.quantized_base:
        # Imported here: it is needed by few jobs, and takes a second.
        from millrace_tuner.jobs import quantized

        quantized.quantize(model, _HEADS.union(given.full_modules), precision)
    if given.kind == "bottleneck":
        bottleneck.insert(model, given)


def settle(model: Any, kind: str, precision: torch.dtype) -> None:
    """Give a trainer's model the types it trains in, in place.

    What is trained is float32, also where TRL made it bfloat16 (beside a base in four bits).
    Frozen linear layers are held in ``precision``, in which autocast multiplies them anyway: so
    nothing changes but memory, and the time of casting them in every step. DoRA reads them too
    (for their norms), and tied ones are embeddings also: those stay.
    """
    shared = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if kind == "dora":
        return
    for layer in model.modules():
        if not isinstance(layer, torch.nn.Linear) or id(layer.weight) in shared:
            continue
        if layer.weight.is_floating_point() and not layer.weight.requires_grad:
            layer.weight.data = layer.weight.data.to(precision)


def configuration(spec: Spec, base: PreTrainedModel, task: str) -> PeftConfig | None:
    """The adapter that ``spec`` asks for; ``None`` where PEFT has no part in it.

    ``task`` is PEFT's task type.

    Raises:
        JobError: ADAPTER_TARGET_UNKNOWN when it is not known what to adapt.
    """
    given = spec.adapter
    if given.kind in ("none", "bottleneck"):
        return None
    if given.kind == "prompt":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=given.virtual_tokens)
    if given.kind == "prefix":
        return PrefixTuningConfig(task_type=task, num_virtual_tokens=given.virtual_tokens)
    whole = _full_names(base, given.full_modules)
    common: dict[str, Any] = {"task_type": task, "modules_to_save": whole or None}
    if given.kind == "ia3":
        return _ia3(base, given, common)
    common["target_modules"] = _targets(base, given.target_modules, whole) or "all-linear"
    if given.kind == "loha":
        return LoHaConfig(r=given.rank, alpha=given.alpha, **common)  # type: ignore[arg-type]
    if given.kind == "lokr":
        return LoKrConfig(r=given.rank, alpha=given.alpha, **common)  # type: ignore[arg-type]
    common |= {"lora_alpha": given.alpha, "lora_dropout": given.dropout}
    if given.kind == "adalora":
        return adaptive_rank.configuration(given.rank, **common)
    return LoraConfig(
        r=given.rank,
        use_dora=given.kind == "dora",
        use_rslora=given.kind == "rslora",
        ensure_weight_tying=bool(_tied_names(base) & set(whole)),
        **common,
    )


def _ia3(base: PreTrainedModel, given: Adapter, common: dict[str, Any]) -> IA3Config:
    """Where nothing is said, the layers that PEFT knows for the model's type."""
    model_type = base.config.model_type
    targets = list(given.target_modules) or _IA3_TARGETS.get(model_type, [])
    if not targets:
        message = f"adapter.target_modules: name the layers to scale; there are {_there(base)}"
        raise JobError("ADAPTER_TARGET_UNKNOWN", message)
    forward = set(_IA3_FEEDFORWARD.get(model_type, [])) & set(targets)
    whole = common["modules_to_save"] or []
    return IA3Config(
        target_modules=_targets(base, tuple(targets), whole),
        feedforward_modules=_targets(base, tuple(forward), whole) if forward else [],
        **common,
    )


def _targets(base: PreTrainedModel, targets: tuple[str, ...], whole: list[str]) -> list[str]:
    """The names by which PEFT finds what is to be adapted; empty: all linear layers.

    Beside modules that are trained whole they are complete names, so that none lies in those.
    """
    if not whole:
        return sorted(targets)
    return sorted(
        name
        for name in _linear_layers(base)
        if (not targets or name.rpartition(".")[2] in targets)
        and not any(f"{name}.".startswith(f"{module}.") for module in whole)
    )


def _linear_layers(base: PreTrainedModel) -> list[str]:
    """But for the output head: TRL computes with its weights directly."""
    head: object = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and name not in _HEADS
    ]


def _full_names(base: PreTrainedModel, modules: tuple[str, ...]) -> list[str]:
    """PEFT takes whatever ends like a name: "norm" would be every "q_norm" too."""
    return [name for name, _ in base.named_modules() if name.rpartition(".")[2] in modules]


def _tied_names(base: PreTrainedModel) -> set[str]:
    """The modules that share their weights with another."""
    tied: dict[str, str] = base.all_tied_weights_keys
    return {name.rpartition(".")[0] for pair in tied.items() for name in pair}


def _there(base: PreTrainedModel) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in _linear_layers(base)}))


def _require_modules(base: PreTrainedModel, given: Adapter) -> None:
    linear = {name.rpartition(".")[2] for name in _linear_layers(base)}
    for target in given.target_modules:
        if target not in linear:
            message = f"adapter.target_modules: {target!r} is none of {_there(base)}"
            raise JobError("ADAPTER_TARGET_UNKNOWN", message)
    every = {name.rpartition(".")[2] for name, module in base.named_modules() if name}
    modules = {name for name in every if not name.isdigit()}
    for target in given.full_modules:
        if target not in modules:
            message = f"adapter.full_modules: {target!r} is none of {', '.join(sorted(modules))}"
            raise JobError("ADAPTER_TARGET_UNKNOWN", message)
    shared = _tied_names(base) & set(_full_names(base, given.full_modules))
    if shared and given.kind not in _KEEP_TIES:
        message = (
            f"adapter.full_modules: {min(shared)} shares its weights with another module, which "
            f"only {', '.join(sorted(_KEEP_TIES))} can train"
        )
        raise JobError("ADAPTER_TARGET_UNKNOWN", message)


def save_adapter(model: PeftModel, directory: Path, spec: Spec) -> None:
    """Write the adapter in PEFT's format, the same bytes wherever and whenever it is written.

    PEFT names the base by its path on this machine and lists modules in the order of a set's
    hashes; here the base is named by version and digest, and the list is sorted.
    """
    if spec.adapter.kind == "bottleneck":
        bottleneck.save(model, directory, _bottleneck_configuration(spec))
        return
    model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = spec.base_version
    config["revision"] = spec.base_checkpoint_digest
    for name in _SETS:
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _bottleneck_configuration(spec: Spec) -> dict[str, object]:
    return {
        "adapter_type": "bottleneck",
        "base_model_name_or_path": spec.base_version,
        "revision": spec.base_checkpoint_digest,
        "rank": spec.adapter.rank,
        "dropout": spec.adapter.dropout,
        "target_modules": sorted(spec.adapter.target_modules),
    }


def save_merged(load: Load, base_model: Path, adapter_directory: Path, directory: Path) -> None:
    """Write the base with the adapter's change of its weights (of LoRA ``alpha / rank * B @ A``),
    computed in float32, in the base's own dtype."""
    base = load(base_model)
    merged = PeftModel.from_pretrained(base, adapter_directory).merge_and_unload(safe_merge=True)
    _save_like(merged, base_model, directory)


def save_tuned(load: Load, base_model: Path, state: dict[str, Any], directory: Path) -> None:
    """Write a fully fine-tuned model, ``state`` being its weights, in the base's own dtype."""
    tuned = load(base_model)
    tuned.load_state_dict(state)
    _save_like(tuned, base_model, directory)


def _save_like(model: PreTrainedModel, base_model: Path, directory: Path) -> None:
    """The configuration of a model with a head of classes is its own; else all is the base's."""
    model.to(stored_dtype(base_model))  # type: ignore[arg-type]  # the stub hides Module.to
    model.save_pretrained(directory, safe_serialization=True)
    has_head = type(model).__name__.endswith("ForSequenceClassification")
    checkpoint.copy_all_but_weights(base_model, directory, keep_configuration=has_head)


def stored_dtype(base_model: Path) -> torch.dtype:
    """The type in which a checkpoint's model is stored."""
    config = json.loads((base_model / "config.json").read_text())
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype: torch.dtype = getattr(torch, named)
    return dtype
