"""Graphs of OpenVINO IR that fit more than one checkpoint: tracing a model takes longer than
everything else that is done with it, and checkpoints of one run differ in their weights alone.

A graph is kept when each of the checkpoint's tensors was found in it, and what this file makes of
the tensor is what the export made of it, byte for byte. What was not found so is not kept, and the
next checkpoint is exported again. What is filled in is measured like any other artifact.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from safetensors import safe_open

from millrace_runtime import manifest
from millrace_runtime.manifest import ManifestError

Array = NDArray[Any]

MODEL_FILE = "openvino_model.xml"
_SLOTS_FILE = "slots.json"
_KEPT_FILES = ("config.json", "generation_config.json", "openvino_config.json")
_PACKAGES = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
# The names that tracing gives to parameters; the second to those of 16 bits.
_NAMES = ("self.{module}.{parameter}", "self.{module}._openvino_orig_{parameter}")
_LEVELS = 255
_MATRIX_DIMENSIONS = 2


@dataclass(frozen=True)
class Slot:
    """A constant of a graph, and what of which tensor stands in it.

    ``part``: ``values`` (as they are), or of 8-bit weights ``codes``, ``scale``, ``zero_point``.
    """

    constant: str
    tensor: str
    part: str


class Graphs:
    """A folder of graphs, by what they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fill(self, model: Path, target: str, output: Path) -> bool:
        """Write the IR of a checkpoint to ``output`` by a kept graph; False: there is none."""
        kept = self._folder / key_of(model, target)
        try:
            slots = _slots(kept)
        except (ManifestError, OSError, ValueError, KeyError):
            return False  # none, or damaged: it is made again
        graph = openvino.Core().read_model(kept / MODEL_FILE)
        constants = _constants(graph)
        with _Tensors(model) as tensors:
            for name, of_tensor in slots.items():
                parts = _parts(tensors.read(name))
                for slot in of_tensor:
                    _replace(constants[slot.constant], parts[slot.part])
        output.mkdir(parents=True, exist_ok=True)
        openvino.save_model(graph, output / MODEL_FILE, compress_to_fp16=False)
        for name in _KEPT_FILES:
            if (kept / name).exists():
                (output / name).write_bytes((kept / name).read_bytes())
        return True

    def keep(self, model: Path, target: str, output: Path) -> bool:
        """Keep the graph in ``output``, exported from the checkpoint ``model``, if it can be."""
        kept = self._folder / key_of(model, target)
        graph = openvino.Core().read_model(output / MODEL_FILE)
        slots = find_slots(graph, model)
        if not slots:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = manifest.temporary_sibling(kept)
        openvino.save_model(graph, temporary / MODEL_FILE, compress_to_fp16=False)
        (temporary / _SLOTS_FILE).write_text(json.dumps([asdict(slot) for slot in slots]))
        for name in _KEPT_FILES:
            if (output / name).exists():
                (temporary / name).write_bytes((output / name).read_bytes())
        manifest.remove_tree(kept)
        manifest.commit(temporary, kept, "graph", {"target": target})
        return True


def key_of(model: Path, target: str) -> str:
    """Identifies what a graph depends on: all of a checkpoint but its tensors' values."""
    with _Tensors(model) as tensors:
        shapes = sorted(tensors.shapes())
    files = [
        manifest.sha256_file(model / name) if (model / name).exists() else ""
        for name in _KEPT_FILES
    ]
    packages = [version(name) for name in _PACKAGES]
    document = json.dumps([target, files, shapes, packages])
    return manifest.sha256_bytes(document.encode()).removeprefix("sha256:")[:32]


def find_slots(graph: openvino.Model, model: Path) -> list[Slot]:
    """Where the checkpoint's tensors stand in its graph; empty when one of them is not found.

    A matrix is found by its name, a vector by its values: tracing gives those other names.
    """
    constants = {name: node.data for name, node in _constants(graph).items()}
    found: list[Slot] = []
    with _Tensors(model) as tensors:
        for name, _, _ in tensors.shapes():
            slots = _slots_of(name, tensors.read(name), constants)
            if not slots:
                return []
            found += slots
    taken = [slot.constant for slot in found]
    return found if len(taken) == len(set(taken)) else []  # two tensors that are equal


def _slots_of(name: str, tensor: Array, constants: Mapping[str, Array]) -> list[Slot]:
    if tensor.ndim < _MATRIX_DIMENSIONS:
        return [
            Slot(constant, name, "values")
            for constant, data in constants.items()
            if data.dtype == tensor.dtype
            and data.size == tensor.size
            and np.array_equal(data.ravel(), tensor)
        ]
    module, _, parameter = name.rpartition(".")
    names = (form.format(module=module, parameter=parameter) for form in _NAMES)
    own = next((each for each in names if each in constants), "")
    places = {
        "codes": own,
        "scale": f"{own}/scale",
        "zero_point": f"{own}/zero_point",
    }
    if own in constants and constants[own].dtype == tensor.dtype:
        places = {"values": own}
    parts = _parts(tensor)
    is_whole = all(
        place in constants and _is_same(constants[place], parts[part])
        for part, place in places.items()
    )
    return [Slot(place, name, part) for part, place in places.items()] if is_whole else []


def _parts(tensor: Array) -> dict[str, Array]:
    """All that can stand in a slot: 8 bits asymmetric, a scale a row, as NNCF rounds them."""
    if tensor.ndim != _MATRIX_DIMENSIONS:
        return {"values": tensor}
    weights = tensor.astype(np.float32)
    low = np.minimum(weights.min(axis=1, keepdims=True), 0)
    high = np.maximum(weights.max(axis=1, keepdims=True), 0)
    epsilon = np.finfo(np.float32).eps
    scale = ((high - low) / _LEVELS).astype(np.float32)
    scale = np.where(np.abs(scale) < epsilon, epsilon, scale).astype(np.float32)
    zero_point = np.clip(-np.round(low / scale), 0, _LEVELS)
    codes = np.clip(np.round(weights / scale + zero_point), 0, _LEVELS)
    return {
        "values": tensor,
        "codes": codes.astype(np.uint8),
        "scale": scale.astype(np.float16),
        "zero_point": zero_point.astype(np.uint8),
    }


def _is_same(constant: Array, part: Array) -> bool:
    return constant.dtype == part.dtype and np.array_equal(constant.reshape(part.shape), part)


def _constants(graph: openvino.Model) -> dict[str, Any]:
    nodes = (node for node in graph.get_ops() if node.get_type_name() == "Constant")
    return {node.get_friendly_name(): node for node in nodes}


def _replace(constant: Any, array: Array) -> None:
    shaped = np.ascontiguousarray(array).reshape(list(constant.shape))
    new = openvino.op.Constant(shaped)
    new.set_friendly_name(constant.get_friendly_name())
    openvino.utils.replace_node(constant, new)


def _slots(kept: Path) -> dict[str, list[Slot]]:
    """The slots of a graph by tensor.

    Raises:
        ManifestError, OSError: there is none, or it is not as it was kept.
    """
    _, digest = manifest.read(kept)
    manifest.verify(kept, digest)
    of_tensor: dict[str, list[Slot]] = {}
    for document in json.loads((kept / _SLOTS_FILE).read_text()):
        slot = Slot(**document)
        of_tensor.setdefault(slot.tensor, []).append(slot)
    return of_tensor


class _Tensors:
    """The tensors of a checkpoint, as float32 where they are floating."""

    def __init__(self, model: Path) -> None:
        opener: Any = safe_open  # has no types
        self._files = [opener(path, "pt") for path in sorted(model.glob("*.safetensors"))]

    def __enter__(self) -> "_Tensors":
        self._of: dict[str, Any] = {}
        for file in self._files:
            opened = file.__enter__()
            self._of.update(dict.fromkeys(opened.keys(), opened))
        return self

    def __exit__(self, *raised: object) -> None:
        for file in self._files:
            file.__exit__(*raised)

    def shapes(self) -> Iterator[tuple[str, list[int], str]]:
        """(name, shape, type) of each."""
        for name, file in self._of.items():
            told = file.get_slice(name)
            yield name, list(told.get_shape()), str(told.get_dtype())

    def read(self, name: str) -> Array:
        array: Array = self._of[name].get_tensor(name).float().numpy()
        return array
