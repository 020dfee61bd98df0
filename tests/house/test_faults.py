"""The tables of planted faults match the current sources."""

from pathlib import Path

import mutants
import pytest

TABLES = sorted(Path(mutants.__file__).parent.glob("*.txt"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_every_fault_changes_one_place(table: Path) -> None:
    family = mutants.read(table)
    assert family.kind in ("run", "compiled", "emulated", "package")
    assert family.faults
    for fault in family.faults:
        source = (ROOT / family.sources / fault.file).read_text("utf-8")
        assert fault.applied(source) != source
