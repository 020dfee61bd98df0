"""Words of messages: counts ("1 image", "1,294 images"), and suggestions for mistyped names."""

import difflib
import re
from collections.abc import Iterable

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


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a question about the known name most similar to an unknown one; an empty text if none is similar.

    Capital letters count as small ones. `cutoff` is the least similarity, from 0 to 1.

    >>> did_you_mean("atention", ["attention", "layer_norm"])
    " (did you mean 'attention'?)"
    """
    spelled = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=cutoff)
    return f" (did you mean {spelled[near[0]]!r}?)" if near else ""
