"""What the tuner's tests build: a base checkpoint as the trainer commits it, and files to learn.

torch and transformers are imported where they are used, so that tests without them stay quick.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from millrace_runtime import manifest

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\\n<tool_call>\\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": '"
    " + call['function']['arguments'] + '}\\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def tokenizer() -> Any:
    """Byte-level BPE with Qwen2's split, and merges that could run over an answer's border."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as PreTokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    words = Split(Regex(_WORDS), behavior="isolated")
    core.pre_tokenizer = PreTokenizers([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["assistant\n\n\n  the mill turns and the race runs\n\n", "user\nsystem\n"]
    core.train_from_iterator(texts * 20, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_base(
    directory: Path, *, hidden_size: int = 64, layers: int = 2, dtype: str = "float32"
) -> str:
    """Commit a Qwen3-shaped checkpoint with random weights; return its digest."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    codec = tokenizer()
    config = Qwen3Config(
        vocab_size=len(codec),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden_size // 32, 1),
        num_key_value_heads=max(hidden_size // 64, 1),
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    end_of_turn = codec.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(eos_token_id=[end_of_turn, codec.eos_token_id])
    temporary = manifest.temporary_sibling(directory)
    model.save_pretrained(temporary / "model")
    codec.save_pretrained(temporary / "model")
    return manifest.commit(temporary, directory, "checkpoint", {"model": "demo", "step": 1})


def conversations(count: int) -> list[dict[str, Any]]:
    """Conversations whose answers follow from their questions."""
    words = ("mill", "race", "wheel", "water", "stone", "grain", "gear", "shaft")
    return [_conversation(number, words[number % len(words)]) for number in range(count)]


def _conversation(number: int, word: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "You repeat."},
            {"role": "user", "content": f"Say {word} after {number}."},
            {"role": "assistant", "content": f"{word} {word} the {word} turns."},
        ]
    }


def write_jsonl(path: Path, examples: Sequence[Any]) -> str:
    """Write one JSON value a line; return the file's sha256."""
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return manifest.sha256_file(path)
