"""Which engine serves an artifact. Its files say it: versions of one model may have different ones,
since the engines share their tensors and so Triton's configuration of the model.
"""

from collections.abc import Sequence
from pathlib import Path

from millrace_registry.triton_config import ENGINE_FILES

# The files of engines/ that serve a Hugging Face checkpoint; the first becomes ``model.py``.
TRANSFORMERS_FILES = (
    "transformers_batching.py",
    "choice.py",
    "constraint.py",
    "constraint_disjoint.py",
    "delivery.py",
    "grammar_numbers.py",
    "grammar_objects.py",
    "grammar_rules.py",
    "grammar_schema.py",
    "grammar_strings.py",
    "group.py",
    "intake.py",
    "logprobs.py",
    "paged.py",
    "sampling.py",
    "stream.py",
    "text_stream.py",
    "vocabulary.py",
)
_OPENVINO_MODEL = "openvino_model.xml"
_CHECKPOINTS = ("model.safetensors", "model.safetensors.index.json")


def engine_of(artifact: Path) -> Sequence[str]:
    """The files of the engine for ``artifact``, a folder.

    What no engine knows goes to OpenVINO's, which says what it lacks when it is loaded.
    """
    is_checkpoint = any((artifact / name).exists() for name in _CHECKPOINTS)
    if is_checkpoint and not (artifact / _OPENVINO_MODEL).exists():
        return TRANSFORMERS_FILES
    return ENGINE_FILES
