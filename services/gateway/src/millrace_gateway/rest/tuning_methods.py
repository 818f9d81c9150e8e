"""``method`` of a fine-tuning job: the OpenAI API's three, and those that Millrace adds.

Reference: https://platform.openai.com/docs/api-reference/fine-tuning/create#method

Each type has an object of its own name. What the OpenAI API has stands as it has it; of ours,
numbers stand in ``hyperparameters`` and the rest beside them. "auto" leaves a choice to the tuner.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from google.protobuf.message import Message
from pydantic import Field

from millrace.tuner.v1 import method_pb2 as pb
from millrace_gateway.rest.shapes import Number, RequestBody
from millrace_runtime.errors import InvalidArgument

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
NotNegative = Annotated[Number, Field(ge=0)]

_SAMPLES_PER_PROMPT = 8  # what compute_multiplier multiplies

# Ours by their names in the protos, where those differ.
_COMMON = {"n_epochs": "epochs"}
_PROTO_NAMES = {"eval_interval": "evaluation_interval", "eval_samples": "evaluation_samples"}
_REST_NAMES = {theirs: ours for ours, theirs in _PROTO_NAMES.items()}


class Hyperparameters(RequestBody):
    """Of every method. The OpenAI API has the first three."""

    n_epochs: Auto | Count = "auto"
    batch_size: Auto | Count = "auto"
    learning_rate_multiplier: Auto | Positive = "auto"
    maximum_sequence_tokens: Auto | Count = "auto"
    early_stopping_patience: Whole | None = None
    gradient_checkpointing: bool | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None


class Adapter(RequestBody):
    """What is trained beside or instead of the base's weights; beyond the OpenAI API."""

    kind: (
        Literal[
            "lora",
            "dora",
            "rslora",
            "adalora",
            "loha",
            "lokr",
            "ia3",
            "prompt",
            "prefix",
            "bottleneck",
            "none",
        ]
        | None
    ) = None
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    alpha: Positive | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    target_modules: list[str] | None = None
    full_modules: list[str] | None = None
    virtual_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    quantized_base: bool | None = None


class DpoHyperparameters(Hyperparameters):
    beta: Auto | Positive = "auto"
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] | None = None


class KtoHyperparameters(Hyperparameters):
    beta: Auto | Positive = "auto"
    desirable_weight: Positive | None = None
    undesirable_weight: Positive | None = None


class OrpoHyperparameters(Hyperparameters):
    beta: Auto | Positive = "auto"


class RewardHyperparameters(Hyperparameters):
    center_coefficient: NotNegative | None = None


class ReinforcementHyperparameters(Hyperparameters):
    """``compute_multiplier`` multiplies the eight answers to each prompt."""

    compute_multiplier: Auto | Positive = "auto"
    eval_interval: Auto | Count = "auto"
    eval_samples: Auto | Count = "auto"
    reasoning_effort: Literal["default"] = "default"
    samples_per_prompt: Auto | Count = "auto"
    temperature: Positive | None = None
    maximum_completion_tokens: Count | None = None
    beta: NotNegative | None = None


class PpoHyperparameters(Hyperparameters):
    clip_range: Annotated[Number, Field(gt=0, lt=1)] | None = None
    value_coefficient: NotNegative | None = None
    divergence_coefficient: NotNegative | None = None
    discount: Annotated[Number, Field(gt=0, le=1)] | None = None
    advantage_decay: Share | None = None
    optimization_epochs: Count | None = None
    temperature: Positive | None = None
    maximum_completion_tokens: Count | None = None


class DistillationHyperparameters(Hyperparameters):
    temperature: Positive | None = None
    interpolation: Share | None = None
    own_answers: Share | None = None


class PretrainingHyperparameters(Hyperparameters):
    replay_fraction: Annotated[Number, Field(ge=0, lt=1)] | None = None
    warmup_fraction: Share | None = None


class Supervised(RequestBody):
    """``packing`` puts several examples into one sequence, none of which sees another."""

    hyperparameters: Hyperparameters = Hyperparameters()
    adapter: Adapter | None = None
    packing: bool | None = None


class Dpo(RequestBody):
    """Direct preference optimisation; ``loss`` chooses among its kin, as TRL names them."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()
    adapter: Adapter | None = None
    loss: str | None = None


class Kto(RequestBody):
    hyperparameters: KtoHyperparameters = KtoHyperparameters()
    adapter: Adapter | None = None


class Orpo(RequestBody):
    hyperparameters: OrpoHyperparameters = OrpoHyperparameters()
    adapter: Adapter | None = None


class Reward(RequestBody):
    hyperparameters: RewardHyperparameters = RewardHyperparameters()
    adapter: Adapter | None = None


class Reinforcement(RequestBody):
    """``grader`` as ``/v1/fine_tuning/alpha/graders`` takes it."""

    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    adapter: Adapter | None = None
    algorithm: Literal["grpo", "rloo"] | None = None


class Ppo(RequestBody):
    reward_model: Annotated[str, Field(min_length=1, max_length=256)]
    hyperparameters: PpoHyperparameters = PpoHyperparameters()
    adapter: Adapter | None = None


class Distillation(RequestBody):
    teacher: Annotated[str, Field(min_length=1, max_length=256)]
    hyperparameters: DistillationHyperparameters = DistillationHyperparameters()
    adapter: Adapter | None = None


class Pretraining(RequestBody):
    hyperparameters: PretrainingHyperparameters = PretrainingHyperparameters()
    adapter: Adapter | None = None


class Classification(RequestBody):
    hyperparameters: Hyperparameters = Hyperparameters()
    adapter: Adapter | None = None


class Sequence(RequestBody):
    hyperparameters: Hyperparameters = Hyperparameters()
    adapter: Adapter | None = None


_NUMBERS = {
    "dpo": set(DpoHyperparameters.model_fields),
    "kto": set(KtoHyperparameters.model_fields),
    "orpo": set(OrpoHyperparameters.model_fields),
    "reward": set(RewardHyperparameters.model_fields),
    "reinforcement": set(ReinforcementHyperparameters.model_fields),
    "ppo": set(PpoHyperparameters.model_fields),
    "distillation": set(DistillationHyperparameters.model_fields),
    "pretraining": set(PretrainingHyperparameters.model_fields),
}
"""Names in the hyperparameters of the types that have more than the common ones."""


class Method(RequestBody):
    """How to tune: ``type``, and the object of that name."""

    type: Literal[
        "supervised",
        "dpo",
        "reinforcement",
        "kto",
        "orpo",
        "reward",
        "ppo",
        "distillation",
        "pretraining",
        "classification",
        "sequence",
    ]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None
    kto: Kto | None = None
    orpo: Orpo | None = None
    reward: Reward | None = None
    ppo: Ppo | None = None
    distillation: Distillation | None = None
    pretraining: Pretraining | None = None
    classification: Classification | None = None
    sequence: Sequence | None = None


def method_message(method: Method) -> pb.Method:
    """
    Raises:
        InvalidArgument: an object of another type is given, or the type demands one.
    """
    message = pb.Method()
    kind = getattr(message, method.type)
    kind.SetInParent()
    body = _own_object(method)
    hyperparameters = _chosen(body.pop("hyperparameters", {}))
    for name, value in _chosen(body.pop("adapter", None) or {}).items():
        _set(message.adapter, name, value)
        message.adapter.SetInParent()
    _multiply_samples(hyperparameters, method.type)
    for name, value in hyperparameters.items():
        own = name not in Hyperparameters.model_fields
        names = _PROTO_NAMES if own else _COMMON
        _set(kind if own else message.hyperparameters, names.get(name, name), value)
    for name, value in _chosen(body).items():
        _set(kind, name, json.dumps(value) if name == "grader" else value)
    return message


def _own_object(method: Method) -> dict[str, Any]:
    """The object of the method's own type, as a dictionary."""
    for name in Method.model_fields:
        if name not in ("type", method.type) and getattr(method, name) is not None:
            raise InvalidArgument(
                f"'method.{name}' is given, but the type is '{method.type}'; leave it out",
                reason="INVALID_VALUE",
                field=f"method.{name}",
            )
    body = getattr(method, method.type)
    if body is not None:
        return dict(body.model_dump())
    demanded = {"reinforcement": "grader", "ppo": "reward_model", "distillation": "teacher"}
    if method.type in demanded:
        raise InvalidArgument(
            f"'method.{method.type}' must be given, with '{demanded[method.type]}'",
            reason="MISSING_REQUIRED_PARAMETER",
            field=f"method.{method.type}",
        )
    return {}


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is left to the tuner."""
    return {name: value for name, value in values.items() if value not in (None, "auto")}


def _multiply_samples(hyperparameters: dict[str, Any], type: str) -> None:
    hyperparameters.pop("reasoning_effort", None)
    multiplier = hyperparameters.pop("compute_multiplier", None)
    if multiplier is None:
        return
    if "samples_per_prompt" in hyperparameters:
        raise InvalidArgument(
            "give 'compute_multiplier' or 'samples_per_prompt', not both",
            reason="INVALID_VALUE",
            field=f"method.{type}.hyperparameters.compute_multiplier",
        )
    hyperparameters["samples_per_prompt"] = max(2, round(_SAMPLES_PER_PROMPT * multiplier))


def _set(message: Message, name: str, value: Any) -> None:
    if isinstance(value, list):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def method_object(message: pb.Method) -> dict[str, Any]:
    """What a job says of its method: every choice, as it was made or resolved."""
    type = message.WhichOneof("kind")
    assert type is not None, "every job has a method"
    common = _values(message.hyperparameters)
    hyperparameters = {"n_epochs": common.pop("epochs", "auto"), **common}
    beside: dict[str, Any] = {}
    numbers = _NUMBERS.get(type, set(Hyperparameters.model_fields))
    for name, value in _values(getattr(message, type)).items():
        shown = _REST_NAMES.get(name, name)
        if shown in numbers:
            hyperparameters[shown] = value
        else:
            beside[shown] = json.loads(value) if shown == "grader" else value
    for name in ("batch_size", "learning_rate_multiplier"):
        hyperparameters.setdefault(name, "auto")
    adapter = _values(message.adapter) or None
    return {
        "type": type,
        type: {"hyperparameters": hyperparameters, "adapter": adapter, **beside},
    }


def _values(message: Message) -> dict[str, Any]:
    found = {}
    for field, value in message.ListFields():
        found[field.name] = value if isinstance(value, str | int | float | bool) else list(value)
    return found


def request_fields(type: str) -> dict[str, str]:
    """Where the protos' fields stand in a request, for errors that name them."""
    places = {"base_model": "model"}
    for name in Hyperparameters.model_fields:
        theirs = _COMMON.get(name, name)
        places[f"method.hyperparameters.{theirs}"] = f"method.{type}.hyperparameters.{name}"
    for name in Adapter.model_fields:
        places[f"method.adapter.{name}"] = f"method.{type}.adapter.{name}"
    for name in _NUMBERS.get(type, set()) - set(Hyperparameters.model_fields):
        theirs = _PROTO_NAMES.get(name, name)
        places[f"method.{type}.{theirs}"] = f"method.{type}.hyperparameters.{name}"
    return places
