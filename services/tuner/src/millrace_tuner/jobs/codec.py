"""A model's tokenizer and chat template, as it was trained and will be served."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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


def load_codec(model_directory: Path, generation_stop_ids: Sequence[int]) -> ChatCodec:
    """The tokenizer of a checkpoint.

    Raises:
        JobError: CHAT_TEMPLATE_MISSING, when the model was never taught to chat.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_directory, local_files_only=True)
    if not tokenizer.chat_template:
        message = "the base model's tokenizer has no chat template; tune a model that has one"
        raise JobError("CHAT_TEMPLATE_MISSING", message)
    stops = {str(tokenizer.convert_ids_to_tokens(token_id)) for token_id in generation_stop_ids}
    return ChatCodec(tokenizer, tuple(sorted(stops | set(tokenizer.all_special_tokens))))


def generation_stop_ids(model: PreTrainedModel) -> list[int]:
    """The tokens at which the model's generation stops."""
    stop = model.generation_config.eos_token_id if model.generation_config else None
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
