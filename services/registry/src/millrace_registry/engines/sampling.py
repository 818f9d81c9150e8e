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
SPECIAL = {"n", "stop", "stream", "logprobs", "prompt_logprobs", "logit_bias", "response_format"}
MOST_ALTERNATIVES = 20
LARGEST_BIAS = 100


@dataclass(frozen=True)
class Sampling:
    """``options`` are keyword arguments of GenerationConfig.

    ``logprobs`` is how many alternatives are told with each token, None when nothing is told;
    ``logit_bias`` is by token id; ``response_format`` is as it was given. With no
    ``max_tokens`` the prompt is scored and nothing generated.
    """

    options: dict[str, Any]
    stops: tuple[str, ...]
    max_tokens: int
    logprobs: int | None
    prompt_logprobs: bool
    logit_bias: dict[int, float]
    response_format: Any
    is_streamed: bool

    @property
    def is_scored(self) -> bool:
        """Whether the scorer has a part in the request."""
        return self.logprobs is not None or self.prompt_logprobs or bool(self.logit_bias)

    @property
    def is_generated_by_scorer(self) -> bool:
        """Whether GenAI has no part in it."""
        return not self.max_tokens or bool(self.logit_bias)


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
    sampling = Sampling(
        _options(given),
        _stops(given.get("stop", [])),
        _max_tokens(given, room_tokens),
        _logprobs(given),
        _flag("prompt_logprobs", given, False),
        _logit_bias(given.get("logit_bias", {})),
        given.get("response_format"),
        _flag("stream", given, True),
    )
    _check_together(sampling)
    # At least one for GenerationConfig, which is not asked when there are none.
    sampling.options["max_new_tokens"] = max(1, sampling.max_tokens)
    return sampling


def _options(given: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": 1.0, "rng_seed": secrets.randbits(31)}
    for key, (option, kind) in PLAIN.items():
        if key in given:
            options[option] = _number(key, kind, given[key])
    options["do_sample"] = options["temperature"] != 0
    if not options["do_sample"]:
        del options["temperature"]
    options["rng_seed"] %= 2**63
    options["apply_chat_template"] = False
    return options


def _number(key: str, kind: type, value: Any) -> Any:
    try:
        if isinstance(value, int | float) and kind(value) == value:
            return kind(value)
    except (ValueError, OverflowError):
        pass  # not a number, or infinite
    raise ValueError(f"{key} must be {kind.__name__}, not {value!r}")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise ValueError("stop must be a string or a list of strings, none of them empty")
    return tuple(stops)


def _max_tokens(given: dict[str, Any], room_tokens: int) -> int:
    asked = int(_number("max_tokens", int, given.get("max_tokens", max(1, room_tokens))))
    if asked < 0 or (asked == 0 and not given.get("prompt_logprobs")):
        raise ValueError("max_tokens must be at least 1, or 0 with prompt_logprobs")
    if asked and room_tokens < 1:
        raise ValueError("the prompt fills the context")
    return min(asked, room_tokens)


def _logprobs(given: dict[str, Any]) -> int | None:
    """An int asks for logprobs, zero too (then of the chosen token only); false does not."""
    asked = given.get("logprobs", False)
    if asked is False:
        return None
    if not 0 <= _number("logprobs", int, asked) <= MOST_ALTERNATIVES:
        raise ValueError(f"logprobs must be 0 to {MOST_ALTERNATIVES}")
    return int(asked)


def _flag(key: str, given: dict[str, Any], default: bool) -> bool:
    asked = given.get(key, default)
    if not isinstance(asked, bool):
        raise ValueError(f"{key} must be true or false, not {asked!r}")
    return asked


def _logit_bias(given: Any) -> dict[int, float]:
    if not isinstance(given, dict) or not all(key.isdecimal() for key in given):
        raise ValueError("logit_bias must be an object whose keys are token ids")
    bias = {int(key): float(_number("logit_bias", float, value)) for key, value in given.items()}
    if wrong := [value for value in bias.values() if not abs(value) <= LARGEST_BIAS]:
        raise ValueError(f"logit_bias must be -{LARGEST_BIAS} to {LARGEST_BIAS}, not {wrong[0]:g}")
    return bias


def _check_together(sampling: Sampling) -> None:
    if sampling.response_format is None:
        return
    if sampling.logit_bias:
        raise ValueError("logit_bias cannot be had together with response_format")
    if sampling.options.get("ignore_eos"):
        raise ValueError("ignore_eos cannot be had together with response_format")
