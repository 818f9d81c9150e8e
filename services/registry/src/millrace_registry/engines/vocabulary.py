"""What each token of a Hugging Face ``tokenizer.json`` spells, and what it is called.

Free of imports from this package, because the file is copied beside ``model.py`` into the Triton
repository.
"""

from collections.abc import Mapping
from pathlib import Path

from text_stream import token_bytes, token_names
from tokenizers import Tokenizer

# A byte-level vocabulary writes these bytes as the characters of the same number, and the others
# as the characters from 256 on (``bytes_to_unicode`` of GPT-2).
AS_THEY_ARE = [*range(33, 127), *range(161, 173), *range(174, 256)]


class Vocabulary:
    """A byte-level tokenizer.

    ``spelling`` is what each token spells, by id: nothing, when it is a special one. ``names`` is
    what each is called.

    Raises:
        ValueError: the tokenizer is not byte-level.
    """

    def __init__(self, file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(file))
        pieces = token_pieces(self._tokenizer)
        every = [[token] for token in range(max(pieces.values()) + 1)]
        visible = self._tokenizer.decode_batch(every, skip_special_tokens=True)
        self.spelling = token_bytes(pieces, visible)
        self.names = token_names(pieces, len(visible))

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens are read where ``text`` has them, and none are added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def token_pieces(tokenizer: Tokenizer) -> Mapping[bytes, int]:
    """The vocabulary with its bytes."""
    byte_of = {chr(byte): byte for byte in AS_THEY_ARE}
    others = [byte for byte in range(256) if byte not in set(AS_THEY_ARE)]
    byte_of |= {chr(256 + place): byte for place, byte in enumerate(others)}
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return {
        text.encode()
        if text in added or not all(character in byte_of for character in text)
        else bytes(byte_of[character] for character in text): token
        for text, token in tokenizer.get_vocab(with_added_tokens=True).items()
    }
