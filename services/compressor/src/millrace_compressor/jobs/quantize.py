"""Export a checkpoint to OpenVINO IR, with the weights in the target's precision.

optimum-intel traces the model with its key/value cache as state, which is the form that
OpenVINO GenAI's continuous batching needs, and NNCF compresses the weights
(https://docs.openvino.ai: "LLM Weight Compression", 8-bit asymmetric, per channel).
"""

import shutil
from pathlib import Path
from typing import Any

import openvino
from optimum.exporters.openvino.convert import export_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer

from millrace_runtime.jobs import JobError

MODEL_FILE = "openvino_model.xml"
WEIGHTS_FILE = "openvino_model.bin"
_COPIED_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md")
_INT8_TYPES = frozenset({"i8", "u8"})
# Norms, rotary tables and zero points stay in floating point; they are a percent or two.
_LEAST_INT8_SHARE = 0.9
_MATRIX_DIMENSIONS = 2


def convert(model: Path, target: str, output: Path) -> None:
    """Write the IR of the model in ``model`` (as ``save_pretrained`` leaves it) to ``output``.

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
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise JobError("CHECKPOINT_INVALID", f"the model cannot be loaded: {error}") from error
    exported.save_pretrained(output)
    export_tokenizer(tokenizer, output)
    for name in _COPIED_FILES:
        # Byte for byte as in training: what the tokenizer's own save would write may differ.
        if (model / name).exists():
            shutil.copyfile(model / name, output / name)


def int8_share(output: Path) -> float:
    """Share of the weight matrices' elements that the IR in ``output`` keeps in 8 bits."""
    model = openvino.Core().read_model(output / MODEL_FILE)
    sizes = {True: 0, False: 0}
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and len(node.shape) >= _MATRIX_DIMENSIONS:
            elements = 1
            for extent in node.shape:
                elements *= extent
            sizes[node.get_element_type().get_type_name() in _INT8_TYPES] += elements
    return sizes[True] / max(1, sum(sizes.values()))


def inspect(output: Path, target: str) -> float:
    """Check that the bytes are what the recipe says; return the share in 8 bits.

    Raises:
        JobError: QUANTIZATION_SKIPPED, with the share that was found.
    """
    share = int8_share(output)
    if target == "openvino-int8" and share < _LEAST_INT8_SHARE:
        raise JobError(
            "QUANTIZATION_SKIPPED",
            f"only {share:.0%} of the weights are in 8 bits, {_LEAST_INT8_SHARE:.0%} are needed",
        )
    return share
