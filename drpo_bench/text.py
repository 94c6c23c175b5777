"""Text to token ids and back: the one place that does it, once, before and after sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextCodec:
    """A tokenizer as the project uses it: no special tokens are added, specials are dropped on the way back."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("model.name: its tokenizer has no eos token, so no response would ever stop")
        self.tokenizer = tokenizer
        self.stop_ids: tuple[int, ...] = (int(tokenizer.eos_token_id),)

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each text."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in encodings]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each id sequence, without special tokens."""
        return list(self.tokenizer.backend_tokenizer.decode_batch([list(row) for row in ids]))
