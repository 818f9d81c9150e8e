"""Export a checkpoint to OpenVINO IR, with the weights in the target's precision.

optimum-intel traces the model with its key/value cache as state, which is the form that
OpenVINO GenAI's continuous batching needs, and NNCF compresses the weights
(https://docs.openvino.ai: "LLM Weight Compression", 8-bit asymmetric, per channel).
"""

import shutil
from pathlib import Path
from typing import Any

from optimum.exporters.openvino.convert import export_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer

from millrace_compressor.jobs.graphs import Graphs
from millrace_runtime.jobs import JobError

WEIGHTS_FILE = "openvino_model.bin"
_COPIED_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")


def convert(model: Path, target: str, output: Path, graphs: Graphs | None = None) -> None:
    """Write the model in ``model`` (as ``save_pretrained`` leaves it) to ``output``: the IR, by a
    graph of an earlier checkpoint where there is one, and all that belongs to its tokenizer.

    Raises:
        JobError: CHECKPOINT_INVALID, when transformers cannot load it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise JobError("CHECKPOINT_INVALID", f"the model cannot be loaded: {error}") from error
    if graphs is None or not graphs.fill(model, target, output):
        export(model, target, output)
        if graphs is not None:
            graphs.keep(model, target, output)
    export_tokenizer(tokenizer, output)
    for name in _COPIED_FILES:
        # Byte for byte as in training: what the tokenizer's own save would write may differ.
        if (model / name).exists():
            shutil.copyfile(model / name, output / name)


def export(model: Path, target: str, output: Path) -> None:
    """Trace the model, and write its IR to ``output``.

    Raises:
        JobError: CHECKPOINT_INVALID, when transformers cannot load it.
    """
    # None keeps the weights as they are; optimum would quantise large models by itself.
    quantization: Any = OVWeightQuantizationConfig(bits=8) if target == "openvino-int8" else None
    try:
        exported = OVModelForCausalLM.from_pretrained(
            model,
            export=True,
            compile=False,
            load_in_8bit=None if quantization else False,
            quantization_config=quantization,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise JobError("CHECKPOINT_INVALID", f"the model cannot be loaded: {error}") from error
    exported.save_pretrained(output)
