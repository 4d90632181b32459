"""Two tokenizers behind one class: whole words for synthetic corpora, byte-level pairs for real text.

Both are `tokenizers` models in which the control tags keep the ids of `Tag`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from pdref.text.tags import Tag, lex


class UnknownWord(ValueError):
    """A word-level tokenizer met a word outside its vocabulary."""


class Tokenizer:
    """Text to token ids and back; the ids of the control tags are those of `Tag`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        for tag in Tag:
            if backend.token_to_id(tag.text) != tag:
                raise ValueError(f"tokenizer gives {tag.text} the id {backend.token_to_id(tag.text)}, not {int(tag)}")
        self._backend = backend
        self._words = isinstance(backend.model, models.WordLevel)

    @classmethod
    def words(cls, vocabulary: Iterable[str]) -> Tokenizer:
        """One token a word; text is words with a single space between them."""
        tokens = [tag.text for tag in Tag] + sorted(set(vocabulary))
        backend = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens([AddedToken(tag.text, normalized=False) for tag in Tag])
        return cls(backend)

    @classmethod
    def byte_pairs(cls, texts: Iterable[str], size: int) -> Tokenizer:
        """Byte-level BPE with `size` tokens, trained on `texts`; any text round-trips, digits stay single."""
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[AddedToken(tag.text, normalized=False) for tag in Tag],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    def __len__(self) -> int:
        """Vocabulary size V, tags included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; tags in it become their ids. Raises `UnknownWord` (word level only)."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        if self._words:
            for text in texts:
                self._require_known_words(text)
        return [encoding.ids for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; inverse of `encode` (for word level: up to the width of white space)."""
        pieces = []
        for is_tag, group in groupby(ids, key=lambda i: i < len(Tag)):
            run = list(group)
            pieces += [Tag(i).text for i in run] if is_tag else [self._decode_plain(run)]
        return "".join(pieces)

    def save(self, path: Path | str) -> None:
        """Write the tokenizer as one JSON file."""
        self._backend.save(str(path))

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read what `save` wrote. Raises FileNotFoundError."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no tokenizer at {path}")
        return cls(tokenizers.Tokenizer.from_file(str(path)))

    def _decode_plain(self, ids: list[int]) -> str:
        if self._words:
            return " ".join(str(self._backend.id_to_token(i)) for i in ids)
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def _require_known_words(self, text: str) -> None:
        for piece in lex(text):
            for word in [] if isinstance(piece, Tag) else piece.split():
                if self._backend.token_to_id(word) is None:
                    raise UnknownWord(f"{word!r} is not in the vocabulary of {len(self)} words")
