"""Exercises: a folder of files in which one function is missing, and a page on which one gradient rule is wrong.

Both can be graded. The folder has tests for pytest. The page of `exercise_page(number)` holds no verdict of its checks;
`judged(number, name)` finds again where that number plants its fault.
"""

import difflib
import random
import shutil
from pathlib import Path

from ..backend.files import new_folder
from ..errors import StudyError
from .check.faults import place_for
from .subject import about, study_run, written

_HANDOUT = Path(__file__).with_name("handout")
_RUN = "digits"  # whose weights come with the package, so that all who have it get the same pages
_LARGEST = 2**31 - 1


def write_exercises(folder: str | Path) -> str:
    """Write the exercises to a folder that is new or empty; return what was written. Raises StudyError."""
    files = sorted(_HANDOUT.glob("*.txt"))
    try:
        with new_folder(folder) as ready:
            for file in files:
                shutil.copyfile(file, ready / file.stem)
    except OSError as error:
        raise StudyError(f"{folder} cannot be written: {error.strerror}") from error
    begin = Path(folder) / "README.md"
    tests = sum(file.name.startswith("test_") for file in files)
    return f"{tests} exercises -> {folder}; begin with {begin}, grade with: python -m pytest {folder}"


def exercise_page(number: int, out: str | None = None) -> str:
    """Write a page on which one gradient rule is wrong, without an answer in it; the number decides which one.

    Returns the path, and how to answer. Raises StudyError.
    """
    subject = study_run(_RUN, plant="any", chance=_chance(number))
    title = f"Exercise {number}: one gradient rule on this page is wrong. Which one?"
    contents = about(subject) | {"title": title, "homework": number, "fused": []}
    path = written(subject.trace, out or f"study-exercise-{number}.html", contents)
    return f"{title}\n{path}\nto answer: tinyvit study --answer {number} OPERATION"


def judged(number: int, claim: str) -> tuple[bool, str]:
    """Return whether the wrong rule on the page of this number is that of `claim`, and what to say about it.

    `claim` is the name of an operation on the page, such as "blocks.0.norm1/layer_norm"; its last part is enough if
    only one name ends with it. Raises StudyError if there is no such operation, or if there are several.
    """
    recorded = study_run(_RUN).trace
    place = place_for("any", recorded, _chance(number))
    keys = [entry.key for entry in recorded if entry.backward]
    meant = [claim] if claim in keys else [entry.key for entry in recorded if entry.backward and entry.op.name == claim]
    if len(meant) > 1:
        raise StudyError(f"there are {len(meant)} operations {claim!r} on the page; name one, such as {meant[0]}")
    if meant == [place.key]:
        return True, f"right: {place.mistake}"
    if meant:
        return False, f"no: the gradient rule of {meant[0]} is right"
    near = difflib.get_close_matches(claim, keys) or keys[:3]
    raise StudyError(f"there is no operation {claim!r} on the page; names are written as {', '.join(near)}")


def _chance(number: int) -> random.Random:
    if not 0 <= number <= _LARGEST:
        raise StudyError(f"the number of an exercise is {number}; it must be between 0 and {_LARGEST:,}")
    return random.Random(number)
