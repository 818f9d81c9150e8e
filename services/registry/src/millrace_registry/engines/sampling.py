"""OpenAI-style sampling parameters to the options of OpenVINO GenAI's GenerationConfig.

Pure and free of imports from this package, because the file is copied beside ``model.py``
into the Triton repository. Ranges are checked by GenerationConfig itself.
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any

# Key -> (option of GenerationConfig, type its value is converted to).
PLAIN = {
    "max_tokens": ("max_new_tokens", int),
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "seed": ("rng_seed", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "ignore_eos": ("ignore_eos", bool),
}
SPECIAL = {"n", "stop", "logprobs"}


@dataclass(frozen=True)
class Sampling:
    """``options`` are keyword arguments of GenerationConfig."""

    options: dict[str, Any]
    stops: tuple[str, ...]
    logprobs: bool


def parse_sampling(document: bytes, room_tokens: int) -> Sampling:
    """Read the JSON object; ``room_tokens`` is what the context has left after the prompt.

    A null counts as absent. Without a seed the reply is random, as OpenAI has it; GenAI's own
    default would be the same reply every time. Raises ValueError naming what is wrong.
    """
    try:
        given = json.loads(document)
    except ValueError as error:
        raise ValueError(f"sampling is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("sampling must be a JSON object")
    given = {key: value for key, value in given.items() if value is not None}
    if unknown := given.keys() - PLAIN.keys() - SPECIAL:
        raise ValueError(f"unknown sampling parameters: {', '.join(sorted(unknown))}")
    if given.get("n", 1) != 1:
        raise ValueError("n must be 1")
    return Sampling(_options(given, room_tokens), _stops(given.get("stop", [])), _logprobs(given))


def _options(given: dict[str, Any], room_tokens: int) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": 1.0, "rng_seed": secrets.randbits(31)}
    for key, (option, kind) in PLAIN.items():
        if key in given:
            options[option] = _number(key, kind, given[key])
    options["max_new_tokens"] = min(options.get("max_new_tokens", room_tokens), room_tokens)
    if options["max_new_tokens"] < 1:
        raise ValueError("max_tokens must be at least 1")
    options["do_sample"] = options["temperature"] != 0
    if not options["do_sample"]:
        del options["temperature"]
    options["rng_seed"] %= 2**63
    options["logprobs"] = int(_logprobs(given))
    options["apply_chat_template"] = False
    return options


def _number(key: str, kind: type, value: Any) -> Any:
    if not isinstance(value, int | float) or kind(value) != value:
        raise ValueError(f"{key} must be {kind.__name__}, not {value!r}")
    return kind(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise ValueError("stop must be a string or a list of strings, none of them empty")
    return tuple(stops)


def _logprobs(given: dict[str, Any]) -> bool:
    """An int asks for logprobs, zero too (then of the chosen token only); false does not."""
    return given.get("logprobs", False) is not False
