"""Which bases a method can tune: those with an encoder are for the method "sequence" alone."""

import json
from pathlib import Path

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs.specification import Spec


def require_suitable(spec: Spec) -> None:
    """
    Raises:
        JobError: BASE_MODEL_UNSUITABLE, BASE_MODEL_UNSUPPORTED.
    """
    has_decoder_and_encoder = _is_encoder_decoder(spec.base_checkpoint_path)
    if has_decoder_and_encoder == (spec.method.kind == "sequence"):
        return
    if has_decoder_and_encoder:
        message = (
            f"{spec.base_version} has an encoder and a decoder, which only the method sequence "
            f"tunes, not {spec.method.kind}; choose that method or another base"
        )
    else:
        message = (
            f"the method sequence tunes models with an encoder and a decoder, such as T5; "
            f"{spec.base_version} has none: use the method supervised, or choose another base"
        )
    raise JobError("BASE_MODEL_UNSUITABLE", message)


def _is_encoder_decoder(checkpoint: Path) -> bool:
    path = checkpoint / "model" / "config.json"
    if not path.exists():
        message = "the base checkpoint has no model/config.json; tune another"
        raise JobError("BASE_MODEL_UNSUPPORTED", message)
    config = json.loads(path.read_text())
    return bool(config.get("is_encoder_decoder"))
