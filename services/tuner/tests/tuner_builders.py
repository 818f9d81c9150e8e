"""What the tuner's tests build: a base checkpoint as the trainer commits it, and files to learn.

torch and transformers are imported where they are used, so that tests without them stay quick.
"""

import json
import shutil
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


def tasks(count: int) -> list[dict[str, Any]]:
    """Prompts for graders; each item says which letter is wanted."""
    return [
        {"messages": [{"role": "user", "content": f"Say something {n}."}], "letter": "e"}
        for n in range(count)
    ]


def write_policy(directory: Path) -> str:
    """Commit a base whose logits differ enough for an adapter to change what it says."""
    import torch
    from safetensors.torch import load_file, save_file

    plain = directory.with_name(f"{directory.name}-plain")
    write_base(plain)
    temporary = manifest.temporary_sibling(directory)
    shutil.copytree(plain / "model", temporary / "model")
    weights = load_file(plain / "model/model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = torch.mul(weights[name], 10)
    save_file(weights, temporary / "model/model.safetensors", metadata={"format": "pt"})
    return manifest.commit(temporary, directory, "checkpoint", {"model": "demo", "step": 1})


def preferences(count: int) -> list[dict[str, Any]]:
    """Pairs in OpenAI's form; the preferred answer repeats, the rejected one refuses."""
    words = ("mill", "race", "wheel", "water", "stone", "grain", "gear", "shaft")
    return [_preference(number, words[number % len(words)]) for number in range(count)]


def _preference(number: int, word: str) -> dict[str, Any]:
    answers = (f"{word} the {word} turns.", f"no, not {number}")
    preferred, rejected = ([{"role": "assistant", "content": text}] for text in answers)
    question = [{"role": "user", "content": f"Say {word} after {number}."}]
    return {
        "input": {"messages": question},
        "preferred_output": preferred,
        "non_preferred_output": rejected,
    }


def judgements(count: int) -> list[dict[str, Any]]:
    """The answers of ``preferences``, each by itself."""
    return [
        {"prompt": pair["input"]["messages"], "completion": pair[name], "label": is_good}
        for pair in preferences(count)
        for name, is_good in (("preferred_output", True), ("non_preferred_output", False))
    ]


def write_dataset(directory: Path, train: Sequence[str], heldout: Sequence[str]) -> str:
    """Commit token shards as the data service packs them; return the directory's digest."""
    import numpy as np

    temporary = manifest.temporary_sibling(directory)
    for prefix, texts in (("train", train), ("heldout", heldout)):
        stream: list[int] = []
        for text in texts:
            stream += [*tokenizer().encode(text), tokenizer().eos_token_id]
        for number, part in enumerate(np.array_split(np.asarray(stream, np.uint16), 2)):
            np.save(temporary / f"{prefix}-{number:05d}.npy", part, allow_pickle=False)
    return manifest.commit(temporary, directory, "dataset", {"train_tokens": len(train)})


@cache
def pair_tokenizer() -> Any:
    """Words of a small language, with T5's end after every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ("zero", "one", "two", "three", "four", "five", "say", "twice", "null", "eins")
    marks = ("<pad>", "</s>", "<unk>")
    ids = {token: number for number, token in enumerate((*marks, *words))}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def write_encoder_decoder(directory: Path) -> str:
    """Commit a T5-shaped checkpoint with random weights; return its digest."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    codec = pair_tokenizer()
    config = T5Config(
        vocab_size=len(codec),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.1,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    temporary = manifest.temporary_sibling(directory)
    T5ForConditionalGeneration(config).save_pretrained(temporary / "model")
    codec.save_pretrained(temporary / "model")
    return manifest.commit(temporary, directory, "checkpoint", {"model": "pairs", "step": 1})
