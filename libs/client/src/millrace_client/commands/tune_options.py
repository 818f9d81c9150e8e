"""What ``millrace tune create`` can be told, and the request that it becomes."""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from millrace_client.api import Json
from millrace_client.errors import ApiError

_DATA, _METHOD, _HYPER, _ADAPTER, _OUTPUT = (
    "Data",
    "Method",
    "Hyperparameters (the service chooses what is left out)",
    "Adapter",
    "Output",
)


class Method(StrEnum):
    """How a job learns."""

    SUPERVISED = "supervised"
    DPO = "dpo"
    KTO = "kto"
    ORPO = "orpo"
    REWARD = "reward"
    REINFORCEMENT = "reinforcement"
    PPO = "ppo"
    DISTILLATION = "distillation"
    PRETRAINING = "pretraining"
    CLASSIFICATION = "classification"
    SEQUENCE = "sequence"


class Adapter(StrEnum):
    """What is trained beside the base's weights; ``none``: the weights themselves."""

    LORA = "lora"
    DORA = "dora"
    RSLORA = "rslora"
    ADALORA = "adalora"
    IA3 = "ia3"
    PROMPT = "prompt"
    PREFIX = "prefix"
    LOHA = "loha"
    LOKR = "lokr"
    BOTTLENECK = "bottleneck"
    NONE = "none"


class Algorithm(StrEnum):
    GRPO = "grpo"
    RLOO = "rloo"


# What stands for an option's value in the help.
_METAVARS: Mapping[str, str] = {
    "--validation-file": "FILE",
    "--method-file": "FILE",
    "--loss": "LOSS",
    "--grader": "FILE",
    "--algorithm": "grpo|rloo",
    "--reward-model": "JOB",
    "--teacher": "MODEL",
    "--replay": "SHARE",
    "--epochs": "N",
    "--batch": "N",
    "--learning-rate-multiplier": "X",
    "--beta": "X",
    "--max-tokens": "N",
    "--early-stopping": "N",
    "--seed": "N",
    "--rank": "N",
    "--alpha": "X",
    "--dropout": "SHARE",
    "--target-modules": "NAME",
    "--full-modules": "NAME",
    "--virtual-tokens": "N",
    "--suffix": "WORD",
    "--request-id": "ID",
    "--sample": "PROMPT",
    "--samples": "N",
    "--sample-tokens": "N",
}


def _option(name: str, panel: str, says: str, **more: Any) -> Any:
    more.setdefault("metavar", _METAVARS.get(name))
    return typer.Option(name, rich_help_panel=panel, help=says, **more)


ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-M", metavar="MODEL", rich_help_panel=_DATA, help="Base: demo, demo@3 or ft:…."
    ),
]
FileOption = Annotated[
    str,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        rich_help_panel=_DATA,
        help="JSONL to learn from: a path, or file-….",
    ),
]
ValidationFileOption = Annotated[
    str, _option("--validation-file", _DATA, "JSONL that is measured and never learned.")
]

MethodOption = Annotated[
    Method | None,
    _option(
        "--method",
        _METHOD,
        "supervised (when left out), dpo, kto, orpo, reward, reinforcement, ppo, distillation, "
        "pretraining, classification, sequence.",
        metavar="METHOD",
        show_default=False,
    ),
]
MethodFileOption = Annotated[
    Path | None,
    _option(
        "--method-file",
        _METHOD,
        "JSON of the whole method, as the API has it; instead of the options below.",
        exists=True,
        dir_okay=False,
    ),
]
LossOption = Annotated[
    str | None, _option("--loss", _METHOD, "dpo: sigmoid, ipo, hinge, robust, apo_zero ….")
]
GraderOption = Annotated[
    Path | None,
    _option(
        "--grader",
        _METHOD,
        "reinforcement: JSON of the grader that rewards.",
        exists=True,
        dir_okay=False,
    ),
]
AlgorithmOption = Annotated[
    Algorithm | None, _option("--algorithm", _METHOD, "reinforcement: grpo when left out.")
]
RewardModelOption = Annotated[
    str | None, _option("--reward-model", _METHOD, "ppo: ftjob-… of the method reward.")
]
TeacherOption = Annotated[
    str | None, _option("--teacher", _METHOD, "distillation: the model to learn from.")
]
ReplayOption = Annotated[
    float | None,
    _option(
        "--replay",
        _METHOD,
        "pretraining: share of the base's own data, against forgetting.",
        min=0,
        max=1,
    ),
]

EpochsOption = Annotated[int | None, _option("--epochs", _HYPER, "Times over the file.", min=1)]
BatchOption = Annotated[
    int | None, _option("--batch", _HYPER, "Examples a step; of reinforcement, prompts.", min=1)
]
RateOption = Annotated[
    float | None,
    _option("--learning-rate-multiplier", _HYPER, "Of the method's own learning rate."),
]
BetaOption = Annotated[
    float | None, _option("--beta", _HYPER, "dpo, kto, orpo, reinforcement: nearness to the base.")
]
MaxTokensOption = Annotated[
    int | None, _option("--max-tokens", _HYPER, "Longer examples are cut.", min=1)
]
EarlyStoppingOption = Annotated[
    int | None,
    _option(
        "--early-stopping", _HYPER, "End after N epochs without a better validation loss.", min=1
    ),
]
PackingOption = Annotated[
    bool | None,
    typer.Option(rich_help_panel=_HYPER, help="supervised: several examples in a sequence."),
]
SeedOption = Annotated[int | None, _option("--seed", _HYPER, "Same seed, same model.", min=0)]

AdapterOption = Annotated[
    Adapter | None,
    _option(
        "--adapter",
        _ADAPTER,
        "lora (when left out), dora, rslora, adalora, loha, lokr, ia3, prompt, prefix, bottleneck; "
        "none trains all weights.",
        metavar="KIND",
        show_default=False,
    ),
]
RankOption = Annotated[int | None, _option("--rank", _ADAPTER, "Size of the adapter.", min=1)]
AlphaOption = Annotated[float | None, _option("--alpha", _ADAPTER, "Weight of the adapter.")]
DropoutOption = Annotated[
    float | None,
    _option("--dropout", _ADAPTER, "Share of the adapter's input left out a step.", min=0, max=1),
]
TargetModulesOption = Annotated[
    list[str] | None,
    _option("--target-modules", _ADAPTER, "Layer to adapt, such as q_proj. Again for more."),
]
FullModulesOption = Annotated[
    list[str] | None,
    _option("--full-modules", _ADAPTER, "Module to train whole beside it. Again for more."),
]
VirtualTokensOption = Annotated[
    int | None, _option("--virtual-tokens", _ADAPTER, "Length of a prompt or prefix.", min=1)
]
QuantizeBaseOption = Annotated[
    bool | None, _option("--quantize-base", _ADAPTER, "Hold the frozen base in four bits (QLoRA).")
]

SuffixOption = Annotated[str, _option("--suffix", _OUTPUT, "Part of the tuned model's id.")]
RequestIdOption = Annotated[str, _option("--request-id", _OUTPUT, "Same id, same job.")]
WatchOption = Annotated[
    bool,
    typer.Option(
        "--watch", "-w", rich_help_panel=_OUTPUT, help="Follow it to its end; then compare."
    ),
]
SampleOption = Annotated[
    list[str] | None,
    _option("--sample", _OUTPUT, "Ask this before and after. Again for more."),
]
SamplesOption = Annotated[
    int,
    _option("--samples", _OUTPUT, "How many of the file's own prompts to ask; 0: none.", min=0),
]
SampleTokensOption = Annotated[
    int, _option("--sample-tokens", _OUTPUT, "Longest answer to a sample.", min=1)
]
JsonOption = Annotated[bool, _option("--json", _OUTPUT, "Print JSON, for programs.")]

# Where each option goes, from the method's own object on; by its name on the command line.
_PLACES: Mapping[str, tuple[str, ...]] = {
    "epochs": ("hyperparameters", "n_epochs"),
    "batch": ("hyperparameters", "batch_size"),
    "learning_rate_multiplier": ("hyperparameters", "learning_rate_multiplier"),
    "beta": ("hyperparameters", "beta"),
    "max_tokens": ("hyperparameters", "maximum_sequence_tokens"),
    "early_stopping": ("hyperparameters", "early_stopping_patience"),
    "packing": ("packing",),
    "loss": ("loss",),
    "grader": ("grader",),
    "algorithm": ("algorithm",),
    "reward_model": ("reward_model",),
    "teacher": ("teacher",),
    "replay": ("hyperparameters", "replay_fraction"),
    "adapter": ("adapter", "kind"),
    "rank": ("adapter", "rank"),
    "alpha": ("adapter", "alpha"),
    "dropout": ("adapter", "dropout"),
    "target_modules": ("adapter", "target_modules"),
    "full_modules": ("adapter", "full_modules"),
    "virtual_tokens": ("adapter", "virtual_tokens"),
    "quantize_base": ("adapter", "quantized_base"),
}
_OF_METHOD: Mapping[str, Method] = {
    "packing": Method.SUPERVISED,
    "loss": Method.DPO,
    "grader": Method.REINFORCEMENT,
    "algorithm": Method.REINFORCEMENT,
    "reward_model": Method.PPO,
    "teacher": Method.DISTILLATION,
    "replay": Method.PRETRAINING,
}
_NEEDED = ("grader", "reward_model", "teacher")
_OF_BODY = {
    "model": "--model",
    "training_file": "--file",
    "validation_file": "--validation-file",
    "suffix": "--suffix",
    "seed": "--seed",
    "method.type": "--method",
    "sweep.trials": "--sweep",
}


def method_of(options: Mapping[str, Any]) -> Json:
    """The request's ``method``, from options by their names.

    Raises:
        BadParameter: options that do not go together, or a file that is not a JSON object.
    """
    given = {name: options[name] for name in _PLACES if _is_given(options.get(name))}
    whole = options.get("method_file")
    if whole is not None:
        others = ["method"] if options.get("method") is not None else sorted(given)
        if others:
            raise typer.BadParameter(
                f"it says the whole method, so without {option_name(others[0])}",
                param_hint="--method-file",
            )
        return json_object(Path(whole), "--method-file")
    kind = Method(options.get("method") or Method.SUPERVISED)
    _check(kind, given)
    told: Json = {"hyperparameters": {}}
    for name, value in given.items():
        *path, last = _PLACES[name]
        place = told.setdefault(path[0], {}) if path else told
        place[last] = json_object(Path(value), "--grader") if name == "grader" else value
    return {"type": kind.value, kind.value: told}


def _is_given(value: object) -> bool:
    return value is not None and value not in ([], ())


def _check(kind: Method, given: Mapping[str, object]) -> None:
    for name in given:
        if _OF_METHOD.get(name, kind) != kind:
            raise typer.BadParameter(
                f"is for --method {_OF_METHOD[name]}", param_hint=option_name(name)
            )
    for name in _NEEDED:
        if _OF_METHOD[name] == kind and name not in given:
            raise typer.BadParameter(f"--method {kind} needs it", param_hint=option_name(name))


def json_object(path: Path, option: str) -> Json:
    """A file's JSON object.

    Raises:
        BadParameter: it holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint=option) from None
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{path} is not a JSON object", param_hint=option)
    return document


def option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def option_of(param: str) -> str:
    """The option that becomes a request's field; empty where it is not obvious.

    ``method.dpo.hyperparameters.n_epochs`` is ``--epochs``, and
    ``method.dpo.adapter.target_modules[1]`` is ``--target-modules``.
    """
    bare = param.partition("[")[0]
    if bare in _OF_BODY:
        return _OF_BODY[bare]
    if not bare.startswith("method."):
        return ""
    path = tuple(bare.split(".")[2:])
    found = [name for name, place in _PLACES.items() if place == path[: len(place)]]
    return option_name(found[0]) if found else ""


def in_options_words(error: ApiError) -> ApiError:
    """The same error, its field called as the option that became it."""
    option = option_of(error.param)
    if option:
        message = str(error).replace(f"'{error.param}'", option)
        if "." in error.param:  # no word that a sentence may hold besides
            message = message.replace(error.param, option)
        error.args = (message,)
        error.param = option
    return error
