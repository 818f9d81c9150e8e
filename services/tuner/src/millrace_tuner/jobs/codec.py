"""A model's tokenizer and chat template, as it was trained and will be served."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs.examples import Messages


class ChatCodec:
    """A model's tokenizer and chat template (``examples.Codec``)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_texts: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.stop_texts = stop_texts

    def render(self, messages: Messages, tools: Messages, *, generation_prompt: bool) -> str:
        # A batch of one: transformers takes an empty list for a batch of none.
        texts = self.tokenizer.apply_chat_template(
            [list(messages)],
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
        return str(texts[0])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def load_tokenizer(model_directory: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        model_directory, local_files_only=True
    )
    return tokenizer


def load_plain_codec(model_directory: Path) -> ChatCodec:
    """The tokenizer of a checkpoint, for what is no conversation."""
    return ChatCodec(load_tokenizer(model_directory), ())


def load_codec(model_directory: Path) -> ChatCodec:
    """The tokenizer of a checkpoint.

    Raises:
        JobError: CHAT_TEMPLATE_MISSING, when the model was never taught to chat.
    """
    tokenizer = load_tokenizer(model_directory)
    if not tokenizer.chat_template:
        message = "the base model's tokenizer has no chat template; tune a model that has one"
        raise JobError("CHAT_TEMPLATE_MISSING", message)
    stop_ids = generation_stop_ids(model_directory)
    stops = {str(tokenizer.convert_ids_to_tokens(token_id)) for token_id in stop_ids}
    return ChatCodec(tokenizer, tuple(sorted(stops | set(tokenizer.all_special_tokens))))


def generation_stop_ids(model_directory: Path) -> list[int]:
    """The tokens at which the model's generation stops."""
    path = model_directory / "generation_config.json"
    if not path.exists():
        path = model_directory / "config.json"
    stop = json.loads(path.read_text()).get("eos_token_id")
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
