"""Counts in messages: "1 image", "1,294 images"."""

import re

# Plurals that end in more than an s, with what stands for it in the singular: classes, boxes, batches; entries.
_ENDINGS = ((re.compile(r"(ss|x|ch|sh)es$"), r"\1"), (re.compile(r"ies$"), "y"), (re.compile(r"s$"), ""))


def counted(count: int, nouns: str) -> str:
    """Return a count with its noun, which is given in the plural; words before it stay as they are.

    >>> counted(1, "images"), counted(1294, "train images"), counted(1, "classes")
    ('1 image', '1,294 train images', '1 class')
    """
    return f"{count:,} {singular(nouns) if count == 1 else nouns}"


def singular(nouns: str) -> str:
    """Return the singular of a noun in the plural."""
    for ending, instead in _ENDINGS:
        if ending.search(nouns):
            return ending.sub(instead, nouns)
    return nouns
