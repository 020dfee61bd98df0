"""Words and numbers: a word-level tokenizer, built from texts.

A text is cut into words and marks of punctuation, in lower case; every word of the vocabulary has a number. The first
six numbers are special. A word that the vocabulary lacks becomes `<unk>`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>", "<mask>", "<cls>")
PAD, START, END, UNK, MASK, CLS = range(6)

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """The words and marks of a text, in lower case: "Is it red?" -> ["is", "it", "red", "?"]."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary: its words in the order of their numbers, the special ones first.

    Raises ValueError if the special words are not first, or a word stands twice.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[: len(SPECIAL)] != SPECIAL:
            raise ValueError(f"words begin with {self.words[: len(SPECIAL)]}; they must begin with {SPECIAL}")
        if len(set(self.words)) < len(self.words):
            raise ValueError(f"words has {Counter(self.words).most_common(1)[0][0]!r} more than once")
        object.__setattr__(self, "_numbers", {word: number for number, word in enumerate(self.words)})

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Tokenizer":
        """The vocabulary of all words in `texts`, in alphabetical order."""
        return cls((*SPECIAL, *sorted({word for text in texts for word in words_of(text)})))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The numbers of the words of a text, without `<start>` and `<end>`."""
        return [self._numbers.get(word, UNK) for word in words_of(text)]  # type: ignore[attr-defined]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of these numbers with spaces between; special ones are left out, but `<unk>` is not."""
        return " ".join(self.words[i] for i in ids if i >= len(SPECIAL) or i == UNK)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the vocabulary lacks."""
        return [word for word in words_of(text) if word not in self._numbers]  # type: ignore[attr-defined]

    def save(self, path: str | Path) -> None:
        """Write the vocabulary in the form of the `tokenizers` library's tokenizer.json."""
        Path(path).write_text(json.dumps(self._as_json(), indent=1), "utf-8")

    def _as_json(self) -> dict[str, object]:
        special = [
            {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for i, word in enumerate(SPECIAL)
        ]  # fmt: skip
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(self.words)}, "unk_token": "<unk>"},
        }

    @classmethod
    def read(cls, path: str | Path) -> "Tokenizer":
        """Read the vocabulary of a tokenizer.json of the kind WordLevel, which has our special words first.

        Raises
        ------
        DataError
            If the file cannot be read, or is of another kind.
        """
        try:
            model = json.loads(Path(path).read_text("utf-8"))["model"]
            kind, vocabulary = model["type"], model["vocab"]
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): check the path") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no tokenizer.json: {error!r}") from error
        if kind != "WordLevel":
            raise DataError(f"{path} holds a tokenizer of the kind {kind}; only WordLevel is read")
        words = tuple(sorted(vocabulary, key=vocabulary.__getitem__))
        try:
            if [vocabulary[word] for word in words] != list(range(len(words))):
                raise ValueError("its numbers are not 0, 1, 2 ...")
            return cls(words)
        except ValueError as error:
            raise DataError(f"{path} holds a vocabulary that does not fit: {error}") from error


def padded(texts: Sequence[Sequence[int]], length: int | None = None) -> NDArray[np.int64]:
    """Rows of numbers (n, length), filled up with `<pad>`; the length of the longest by default.

    Raises ValueError if one is longer than `length`.
    """
    longest = max(map(len, texts), default=0)
    if length is not None and longest > length:
        raise ValueError(f"texts: the longest has {longest} words; there may be {length}")
    table = np.full((len(texts), longest if length is None else length), PAD, np.int64)
    for row, ids in zip(table, texts, strict=True):
        row[: len(ids)] = ids
    return table
