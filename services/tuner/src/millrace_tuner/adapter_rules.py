"""Which parameters each kind of adapter has a use for. Pure; what it has none for is refused."""

from collections.abc import Mapping

from millrace_runtime.errors import InvalidArgument
from millrace_tuner.methods import Adapter, AdapterKind

_LOW_RANK = ("rank", "alpha", "target_modules", "full_modules")
_QUANTIZED_LOW_RANK = (*_LOW_RANK, "dropout", "quantized_base")
_USES: Mapping[AdapterKind, tuple[str, ...]] = {
    "lora": _QUANTIZED_LOW_RANK,
    "dora": _QUANTIZED_LOW_RANK,
    "rslora": _QUANTIZED_LOW_RANK,
    "adalora": _QUANTIZED_LOW_RANK,
    "loha": _LOW_RANK,
    "lokr": _LOW_RANK,
    "ia3": ("target_modules", "full_modules"),
    "prompt": ("virtual_tokens", "quantized_base"),
    "prefix": ("virtual_tokens", "quantized_base"),
    "bottleneck": ("rank", "dropout", "target_modules", "quantized_base"),
    "none": (),
}
_PARAMETERS = (
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "full_modules",
    "virtual_tokens",
    "quantized_base",
)


def adapter_mistake(asked: Adapter) -> tuple[str, str] | None:
    """The field at fault and what is wrong with it, of an adapter as it was asked for.

    What was not said is zero or empty, as in the message. PEFT's loha and lokr know neither
    dropout of their inputs nor four-bit layers.
    """
    used = _USES[asked.kind]
    for name in _PARAMETERS:
        if getattr(asked, name) and name not in used:
            there = f"it has {', '.join(used)}" if used else "all weights are trained"
            return f"method.adapter.{name}", f"{asked.kind!r} has no {name}; {there}"
    for name in asked.full_modules:
        if name in asked.target_modules:
            message = f"{name!r} is in target_modules too; it is either adapted or trained whole"
            return "method.adapter.full_modules", message
    return None


def require_meaningful(asked: Adapter | None, gradient_checkpointing: bool) -> None:
    """
    Raises:
        InvalidArgument: naming the parameter that the adapter's kind has no use for.
    """
    if asked is None:
        return
    mistake = adapter_mistake(asked)
    if mistake is None and asked.kind == "prefix" and gradient_checkpointing:
        # A prefix is a cache of keys and values, which checkpointing switches off.
        message = "a prefix cannot be trained with gradient checkpointing; leave it out"
        mistake = ("hyperparameters.gradient_checkpointing", message)
    if mistake is not None:
        field, message = mistake
        raise InvalidArgument(f"{field}: {message}", field=field)
