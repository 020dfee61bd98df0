"""Counts in messages have the right number of their noun."""

import pytest

from tinyvit.backend.words import counted


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        *(("images", "image"), ("train images", "train image"), ("files", "file"), ("queries", "query")),
        *(("classes", "class"), ("processes", "process"), ("boxes", "box"), ("batches", "batch")),
    ],
)
def test_one_has_a_singular_and_all_other_counts_a_plural(plural: str, singular: str) -> None:
    assert counted(1, plural) == f"1 {singular}"
    assert counted(0, plural) == f"0 {plural}"
    assert counted(1294, plural) == f"1,294 {plural}"
