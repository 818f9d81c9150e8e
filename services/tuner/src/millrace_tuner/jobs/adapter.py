"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) with PEFT, and models merged from them.

A merged model is made from the base as it was committed, read anew, and never from the model
in training: merging there and undoing it again would leave rounding errors in its weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import checkpoint
from millrace_tuner.jobs.specification import Spec


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


def lora_config(spec: Spec, base: PreTrainedModel) -> LoraConfig | None:
    """The adapter that ``spec`` asks for, ``None`` for full fine-tuning.

    Raises:
        JobError: ADAPTER_TARGET_UNKNOWN when the model has no module of a given name.
    """
    if spec.adapter is None:
        return None
    targets = spec.adapter.target_modules
    if targets != "all-linear":
        _require_modules(base, targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.adapter.rank,
        lora_alpha=spec.adapter.alpha,  # type: ignore[arg-type]  # PEFT only multiplies by it
        lora_dropout=spec.adapter.dropout,
        target_modules=targets if isinstance(targets, str) else sorted(targets),
    )


def _require_modules(base: PreTrainedModel, targets: tuple[str, ...]) -> None:
    """Linear layers by the last part of their names; the output head cannot be adapted by TRL."""
    head: object = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = {
        name.rpartition(".")[2]: module
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    for target in targets:
        if target not in linear:
            message = f"adapter.target_modules: {target!r} is none of {', '.join(sorted(linear))}"
            raise JobError("ADAPTER_TARGET_UNKNOWN", message)


def save_adapter(model: PeftModel, directory: Path, spec: Spec) -> None:
    """Write the adapter in PEFT's format, the same bytes wherever and whenever it is written.

    PEFT names the base by its path on this machine and lists modules in the order of a set's
    hashes; here the base is named by version and digest, and the list is sorted.
    """
    model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = spec.base_version
    config["revision"] = spec.base_checkpoint_digest
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_merged(base_model: Path, adapter_directory: Path, directory: Path) -> None:
    """Write ``base + alpha / rank * B @ A``, computed in float32, in the base's own dtype."""
    base = load_base(base_model)
    merged = PeftModel.from_pretrained(base, adapter_directory).merge_and_unload(safe_merge=True)
    _save_like(merged, base_model, directory)


def save_tuned(base_model: Path, state: dict[str, Any], directory: Path) -> None:
    """Write a fully fine-tuned model, ``state`` being its weights, in the base's own dtype."""
    tuned = load_base(base_model)
    tuned.load_state_dict(state)
    _save_like(tuned, base_model, directory)


def _save_like(model: PreTrainedModel, base_model: Path, directory: Path) -> None:
    stored = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto", local_files_only=True)
    model.to(stored.dtype)  # type: ignore[arg-type]  # the stub hides Module.to
    model.save_pretrained(directory, safe_serialization=True)
    checkpoint.copy_all_but_weights(base_model, directory)
