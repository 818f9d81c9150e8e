"""A causal language model as ONNX, with its key/value cache as inputs and outputs.

    input_ids, position_ids        int64, (batch, sequence)
    attention_mask                 int64, (batch, past + sequence); 0: padding
    past_key_values.N.key/.value   (batch, key/value heads, past, head size); past may be 0
    logits                         float32, (batch, sequence, vocabulary)
    present.N.key/.value           as the past, with the sequence's own behind it

The weights lie beside the graph, in ``model.onnx.data``: a protobuf ends at 2 GiB.
"""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from millrace_runtime.jobs import JobError

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
# The first opset whose Q/DQ know FLOAT8E4M3FN is 19; the exporter's newest is 20.
OPSET = 20
_COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
)
_INPUTS = ("input_ids", "attention_mask", "position_ids")
_EXTERNAL_BYTES = 1024  # what is smaller stays in the graph, where shapes are inferred from it
_BATCH, _PAST, _SEQUENCE = 2, 3, 5  # of the example that is traced; none is a dimension's name


class _WithCache(torch.nn.Module):
    """``model`` with its cache as plain tensors: key, value, key, … of each layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Any, positions: Any, *past: Any) -> tuple[Any, ...]:
        told = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=DynamicCache(list(zip(past[::2], past[1::2], strict=True))),
            use_cache=True,
        )
        layers = told.past_key_values.layers
        present = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return (told.logits.float(), *present)


def export(model: Path, output: Path, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """Trace the model in ``model`` (as ``save_pretrained`` leaves it), its weights in ``dtype``.

    What transformers computes in float32 (norms, softmax, rotary angles) stays so in any dtype.
    The tokenizer's files are copied to ``output`` byte for byte; the graph is returned.

    Raises:
        JobError: CHECKPOINT_INVALID, when transformers cannot load it.
    """
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, local_files_only=True, attn_implementation="eager"
        )
    except (OSError, ValueError, KeyError) as error:
        raise JobError("CHECKPOINT_INVALID", f"the model cannot be loaded: {error}") from error
    output.mkdir(parents=True, exist_ok=True)
    for name in _COPIED_FILES:
        if (model / name).exists():
            shutil.copyfile(model / name, output / name)
    return _traced(_WithCache(loaded), _empty_cache(loaded), output)


def _empty_cache(model: Any) -> list[torch.Tensor]:
    """A past of ``_PAST`` positions, as large as the model itself makes it."""
    ids = torch.zeros((_BATCH, _PAST), dtype=torch.int64)
    with torch.inference_mode():
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    return [torch.zeros_like(tensor) for layer in layers for tensor in (layer.keys, layer.values)]


def _traced(model: _WithCache, past: list[torch.Tensor], output: Path) -> onnx.ModelProto:
    """``output`` takes the exporter's own files for a while: /tmp may be small."""
    names = [f"{layer}.{kind}" for layer in range(len(past) // 2) for kind in ("key", "value")]
    pasts, presents = (
        [f"{prefix}.{name}" for name in names] for prefix in ("past_key_values", "present")
    )
    inputs = (
        torch.zeros((_BATCH, _SEQUENCE), dtype=torch.int64),
        torch.ones((_BATCH, _PAST + _SEQUENCE), dtype=torch.int64),
        torch.arange(_PAST, _PAST + _SEQUENCE).repeat(_BATCH, 1),
        *past,
    )
    with tempfile.TemporaryDirectory(dir=output) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tracing a model says of its Python
        path = Path(folder) / MODEL_FILE
        torch.onnx.export(
            model,
            inputs,
            path,
            input_names=[*_INPUTS, *pasts],
            output_names=["logits", *presents],
            dynamic_axes=_dynamic_axes(pasts, presents),
            opset_version=OPSET,
            dynamo=False,
        )
        graph = onnx.load(path)
    _widen_softmax(graph.graph)
    return graph


def _widen_softmax(graph: onnx.GraphProto) -> None:
    """Have softmax computed in the type that it is asked for.

    torch's exporter writes ``softmax(x, dtype=float32)`` as Softmax in x's own type, and a Cast
    behind it; here the Cast goes in front as well.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    del graph.value_info[:]  # says the types of before
    for at, node in reversed(list(enumerate(graph.node))):
        behind = readers.get(node.output[0], []) if node.op_type == "Softmax" else []
        if behind and all(_is_wide_cast(reader) for reader in behind):
            wide = f"{node.output[0]}_wide"
            cast = helper.make_node(
                "Cast", [node.input[0]], [wide], f"{node.name}/Wide", to=TensorProto.FLOAT
            )
            node.input[0] = wide
            graph.node.insert(at, cast)


def _is_wide_cast(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT


def _dynamic_axes(pasts: list[str], presents: list[str]) -> dict[str, dict[int, str]]:
    tokens = {0: "batch", 1: "sequence"}
    return {
        "input_ids": tokens,
        "position_ids": tokens,
        "logits": tokens,
        "attention_mask": {0: "batch", 1: "total"},
        **{name: {0: "batch", 2: "past"} for name in pasts},
        **{name: {0: "batch", 2: "total"} for name in presents},
    }


def save(graph: onnx.ModelProto, output: Path) -> None:
    """Write the graph and its weights; what was there before goes."""
    (output / WEIGHTS_FILE).unlink(missing_ok=True)
    onnx.save(
        graph,
        output / MODEL_FILE,
        save_as_external_data=True,
        location=WEIGHTS_FILE,
        size_threshold=_EXTERNAL_BYTES,
    )


def size_bytes(output: Path) -> int:
    """Of the graph and the weights beside it."""
    files = (output / MODEL_FILE, output / WEIGHTS_FILE)
    return sum(path.stat().st_size for path in files if path.exists())
