"""Tokenizers of models trained from scratch: words with single digits, or byte-level BPE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BOS, EOS, UNK = SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0, 1, 2, 3
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
DIGITS = tuple("0123456789")

# A piece is a digit, or a word or sign together with the space after it: numbers need no space token.
PIECE = r"\s?#### ?|[0-9]|'s ?|[A-Za-z]+ ?|[^A-Za-z0-9\s] ?|\s"


def word_tokenizer(pieces: Iterable[str]) -> Tokenizer:
    """A tokenizer with these pieces as its vocabulary; what it knows it decodes exactly.

    A piece holds its trailing space ("then "); digits are always there, and always single tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = dict.fromkeys([*SPECIALS, *DIGITS, *pieces])  # ordered and without duplicates
    for piece in list(vocabulary)[len(SPECIALS) :]:
        if not re.fullmatch(PIECE, piece):
            raise ValueError(f"{piece!r} is not one piece: the pre-tokenizer would split it")
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return tokenizer


def byte_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE learned from the texts: every text round-trips, digits are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
