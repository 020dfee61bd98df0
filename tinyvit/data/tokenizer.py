"""A word-level tokenizer, whose vocabulary is built from texts.

A text is split into words and punctuation marks, in lower case; each is a token with an id. The first six ids are those
of special tokens. A word that is not in the vocabulary becomes `<unk>`.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.files import parse_json, read_text
from ..errors import DataError

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>", "<mask>", "<cls>")
PAD, START, END, UNK, MASK, CLS = range(6)

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in lower case: "Is it red?" -> ["is", "it", "red", "?"].

    Letters are taken in Unicode's composed form (NFC), so that texts that look the same have the same words.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.removeprefix("\ufeff").lower()))


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary: `words` in the order of their token ids, the special tokens first.

    Raises ValueError if the special tokens are not first, or if a word occurs twice.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[: len(SPECIAL)] != SPECIAL:
            raise ValueError(f"words begin with {self.words[: len(SPECIAL)]}; they must begin with {SPECIAL}")
        if len(set(self.words)) < len(self.words):
            raise ValueError(f"words has {Counter(self.words).most_common(1)[0][0]!r} more than once")
        numbers = {unicodedata.normalize("NFC", word): number for number, word in enumerate(self.words)}
        object.__setattr__(self, "_numbers", numbers | {word: number for number, word in enumerate(self.words)})

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Tokenizer":
        """Build the vocabulary of all words in `texts`, in alphabetical order."""
        return cls((*SPECIAL, *sorted({word for text in texts for word in words_of(text)})))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without `<start>` and `<end>`."""
        return [self._numbers.get(word, UNK) for word in words_of(text)]  # type: ignore[attr-defined]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words with these token ids, separated by spaces and without special tokens other than `<unk>`."""
        return " ".join(self.words[i] for i in ids if i >= len(SPECIAL) or i == UNK)

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that are not in the vocabulary."""
        return [word for word in words_of(text) if word not in self._numbers]  # type: ignore[attr-defined]

    def save(self, path: str | Path) -> None:
        """Write the vocabulary in the format of the `tokenizers` library, tokenizer.json."""
        Path(path).write_text(json.dumps(self._as_json(), indent=1), "utf-8")

    def _as_json(self) -> dict[str, Any]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        special = [{"id": i, "content": word, **flags} for i, word in enumerate(SPECIAL)]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "NFC"}]},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(self.words)}, "unk_token": "<unk>"},
        }

    @classmethod
    def read(cls, path: str | Path) -> "Tokenizer":
        """Read the vocabulary of a tokenizer.json of the type WordLevel that has our special tokens first.

        Raises
        ------
        DataError
            If the file cannot be read, or holds another tokenizer than `save` writes: it would split other words.
        """
        try:
            document = parse_json(read_text(path))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error
        except ValueError as error:
            raise DataError(f"{path} is not a tokenizer.json: {error}") from error
        model = document.get("model") if isinstance(document, dict) else None
        if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
            raise DataError(f"{path} is not a tokenizer.json: it has no model with a vocab")
        if model.get("type") != "WordLevel":
            raise DataError(f"{path} holds a tokenizer of the type {model.get('type')}; only WordLevel can be read")
        vocabulary = model["vocab"]
        if not all(type(number) is int for number in vocabulary.values()):
            raise DataError(f"{path} holds a vocabulary that does not fit: its token ids are not integers")
        words = tuple(sorted(vocabulary, key=vocabulary.__getitem__))
        if [vocabulary[word] for word in words] != list(range(len(words))):
            raise DataError(f"{path} holds a vocabulary that does not fit: its token ids are not 0, 1, 2 ...")
        try:
            read = cls(words)
        except ValueError as error:
            raise DataError(f"{path} holds a vocabulary that does not fit: {error}") from error
        for table, own in ((document, read._as_json()), (model, read._as_json()["model"])):
            for key in table.keys() - {"model", "vocab"}:
                if key not in own or table[key] != own[key]:
                    raise DataError(f"{path} holds another tokenizer than tinyvit has: {key!r} is {table[key]!r:.100}")
        return read


def padded(texts: Sequence[Sequence[int]], length: int | None = None) -> NDArray[np.int64]:
    """Return token ids as a table (n, length), padded with `<pad>`; by default as long as the longest text.

    Raises ValueError if a text is longer than `length`.
    """
    longest = max(map(len, texts), default=0)
    if length is not None and longest > length:
        raise ValueError(f"texts: the longest has {longest} tokens; at most {length} are allowed")
    table = np.full((len(texts), longest if length is None else length), PAD, np.int64)
    for row, ids in zip(table, texts, strict=True):
        row[: len(ids)] = ids
    return table
