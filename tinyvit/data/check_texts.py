"""A look at a table of texts before it is trained on: counts, words, answers, images that are missing, examples."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.threads import pool_of_threads
from ..backend.words import counted
from ..errors import DataError
from .check import ORDER, Checked, contradictions, duplicates, fault_lines, left_out_lines, small_copy
from .disk import digest
from .folders import FolderOptions
from .image_files import LeftOut, listed
from .own_texts import HELD_OUT_ROWS, Row, TextTable
from .tokenizer import words_of


def check_texts(
    path: str | Path, columns: Sequence[str], options: FolderOptions | None = None, examples: int = 12
) -> Checked:
    """Read all rows and images of a table, see `tinyvit.data.own_texts`, and describe them. Raises DataError."""
    faults: list[DataError] = []
    table = TextTable(path, columns, options or FolderOptions(validation=HELD_OUT_ROWS), faults.append)
    parts = {split: table.parts[split] for split in ORDER if split in table.parts}
    everything = [row for rows in parts.values() for row in rows]
    cut = f"; {' and '.join(table.cut)} rows were cut by a seed" if table.cut else ""
    lines = [f"{path}: {counted(len(everything), 'rows')} of {', '.join(table.columns)}{cut}", ""]
    lines += [f"{split:10}  {_size(rows, table)}" for split, rows in parts.items()]
    lines += ["", *_words(table, parts)]
    if table.classes:
        counts = Counter(row.texts[1] for row in everything)
        most = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(10))
        lines.append(f"answers: {len(counts)}; most often: {most}")
    shown: dict[str, list[NDArray[np.uint8]]] = {}
    if "image" in table.columns:
        found, broken = _read(parts)
        left_out = {split: [broken[file] for file in _files(rows) if file in broken] for split, rows in parts.items()}
        used = {split: len(_files(rows)) - len(left_out[split]) for split, rows in parts.items()}
        left_out["train"] += table.left_out
        lines += left_out_lines(left_out, used)
        keys = {file: digest(pixels).tobytes() for file, pixels in found.items()}
        lines += duplicates({split: [(file, keys[file]) for file in _files(rows) if file in keys]
                             for split, rows in parts.items()})  # fmt: skip
        if table.classes:
            lines.append(contradictions(((keys.get(row.file), *words_of(row.texts[0])), row.texts[1], _named(row))
                                        for row in everything if row.file in keys))  # fmt: skip
        shown = {split: [found[file] for file in _files(rows) if file in found][:examples]
                 for split, rows in parts.items()}  # fmt: skip
    lines += ["", *(f"line {row.line}: {' -> '.join(_shown(row, table))}" for row in parts["train"][:3])]
    told = tuple(map(str, faults))
    return Checked("\n".join([*lines, *fault_lines(told)]), shown, told)


def _size(rows: Sequence[Row], table: TextTable) -> str:
    count = counted(len(rows), "rows")
    number = f"{count.partition(' ')[0]:>10} {count.partition(' ')[2]}"
    return f"{number} about {counted(len(_files(rows)), 'images')}" if "image" in table.columns else number


def _named(row: Row) -> str:
    return f"line {row.line}: {row.file}, {row.texts[0]!r}"


def _files(rows: Sequence[Row]) -> list[Path]:
    return list(dict.fromkeys(row.file for row in rows if row.file is not None))


def _shown(row: Row, table: TextTable) -> list[str]:
    return [*([row.file.name] if row.file else []), *row.texts]


def _words(table: TextTable, parts: dict[str, list[Row]]) -> list[str]:
    """Return lines about the vocabulary, the longest texts, and the words that only other splits have."""
    names = [name for name in table.columns if name not in ("image", "answer")]
    lengths = ", ".join(f"{name} {length}" for name, length in zip(names, table.longest, strict=False))
    words = counted(len(table.tokenizer), "words")
    lines = [f"vocabulary: {words} of the training rows; words of the longest text: {lengths}"]
    for split, rows in parts.items():
        if split != "train":
            texts = [text for row in rows for text in row.texts[: len(names)]]
            unknown = sorted({word for text in texts for word in table.tokenizer.unknown(text)})
            total = len({word for text in texts for word in words_of(text)})
            names_of = f": {listed(unknown, 20)}" if unknown else ""
            lines.append(f"unknown words of the {split} rows: {len(unknown):,} of {total:,}{names_of}")
    return lines


def _read(parts: dict[str, list[Row]]) -> tuple[dict[Path, Any], dict[Path, LeftOut]]:
    """Read every image once: return small copies of those that can be read, and why the others cannot."""
    files = list(dict.fromkeys(file for rows in parts.values() for file in _files(rows)))
    with pool_of_threads() as pool:
        results = dict(zip(files, pool.map(small_copy, files), strict=True))
    broken = {file: result for file, result in results.items() if isinstance(result, LeftOut)}
    return {file: pixels for file, pixels in results.items() if file not in broken}, broken
