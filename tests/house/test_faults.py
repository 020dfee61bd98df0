"""The tables of planted faults match the sources, and the record of what noticed them knows what has changed."""

import re
from pathlib import Path

import mutants
import pytest
from mutants import ROOT, TABLES, Family, Fault, record, trials


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_every_fault_changes_one_place(table: Path) -> None:
    family = mutants.read(table)
    assert family.kind in ("run", "compiled", "emulated", "package")
    assert family.faults
    for fault in family.faults:
        source = (ROOT / family.sources / fault.file).read_text("utf-8")
        assert fault.applied(source) != source


def test_faults_of_a_table_have_different_descriptions() -> None:
    for table in TABLES:
        descriptions = [fault.what for fault in mutants.read(table).faults]
        assert len(set(descriptions)) == len(descriptions), table.stem
        assert not any("\t" in what for what in descriptions)


TEST = "tests/optim/test_step.py::test_it[a::b]"


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Family, Fault]:
    """A project with one fault, a test that notices it, a module that the test imports, and one that this imports."""
    fault = Fault("a wrong sign", "optim/step.py", ["a - b"], ["a + b"])
    for name, text in {
        "tinyvit/optim/step.py": "a - b",
        "tests/optim/test_step.py": "from draws import drawn\n",
        "tests/optim/test_other.py": "",
        "tests/support/draws.py": "def drawn():\n    import numbers_of\n",
        "tests/support/numbers_of.py": "",
        "tests/support/unused.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path, Family(["optim"], "package", [fault]), fault


def test_a_digest_is_of_the_fault_its_file_and_its_test_with_what_that_imports(
    small: tuple[Path, Family, Fault],
) -> None:
    root, family, fault = small
    first = record.digest_of(family, fault, TEST, root)
    others = {
        record.digest_of(family, Fault(fault.what, fault.file, ["a - b"], ["b - a"]), TEST, root),
        record.digest_of(family, fault, TEST + "2", root),
    }
    for name in (
        "tinyvit/optim/step.py",
        *(f"tests/{n}.py" for n in ("optim/test_step", "support/draws", "support/numbers_of")),
    ):
        before = (root / name).read_text("utf-8")
        (root / name).write_text(before + "# changed", "utf-8")
        others.add(record.digest_of(family, fault, TEST, root))
        (root / name).write_text(before, "utf-8")
    assert len(others) == 6
    assert first not in others
    for name in ("tests/optim/test_other.py", "tests/support/unused.py"):
        (root / name).write_text("# changed", "utf-8")
    assert record.digest_of(family, fault, TEST, root) == first


def test_a_fault_is_run_unless_the_record_knows_it_as_it_is(tmp_path: Path) -> None:
    table = next(table for table in TABLES if table.stem == "softmax")
    family, test = mutants.read(table), "tests/kernels/test_kernels.py::test_it"
    known, other, new, *rest = family.faults
    entries = {
        ("softmax", known.what): record.Entry(test, record.digest_of(family, known, test)),
        ("softmax", other.what): record.Entry(test, "of another time"),
        ("softmax", "a fault that is gone"): record.Entry(test, "of another time"),
    }
    assert record.changed(entries, "softmax", family) == [other, new, *rest]
    path = tmp_path / "record.tsv"
    record.write_record(entries, {"softmax": family}, path)
    assert list(record.read_record(path)) == [("softmax", known.what), ("softmax", other.what)]
    assert record.read_record(path)["softmax", known.what] == entries["softmax", known.what]


def test_every_seed_draws_one_of_ten_of_the_others() -> None:
    faults = [Fault(f"fault {i}", "file") for i in range(1000)]
    found = {seed: {fault.what for fault in record.drawn("family", faults, seed)} for seed in ("one", "two")}
    assert found["one"] != found["two"]
    assert all(70 < len(drawn) < 130 for drawn in found.values())
    seeds = range(100)
    ever = {fault.what for seed in seeds for fault in record.drawn("family", faults, str(seed))}
    assert len(ever) == 1000


@pytest.mark.slow
def test_a_named_test_runs_though_it_is_slow_and_is_known_to_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = "import pytest\nfrom step import step\n\n@pytest.mark.slow\ndef test_it():\n    assert step() == 1\n"
    for name, text in {
        "pyproject.toml": (ROOT / "pyproject.toml").read_text("utf-8"),
        "kernels/__init__.py": "",
        "tinyvit/step.py": "def step():\n    return 1\n",
        "tests/conftest.py": (
            "import sys\nfrom hypothesis import settings\n\n"
            "sys.path.append('../tinyvit')\nsettings.register_profile('faults')\n"
        ),
        "tests/test_step.py": test,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    fault = Fault("a wrong number", "step.py", ["return 1"], ["return 2"])
    family = Family(["test_step.py", "-m", "slow"], "package", [fault])
    found = trials.tried(family, fault, "", None)
    assert found == trials.Outcome(trials.NOTICED, "tests/test_step.py::test_it")
    assert trials.tried(Family(["test_none.py"], "package", [fault]), fault, "", found.test) == found
    assert trials.without_fault(family, [found.test], "") == trials.NOT_NOTICED
    (tmp_path / "tests/test_step.py").write_text(test.replace("mark.slow", "mark.skip"), "utf-8")
    assert trials.tried(family, fault, "", found.test).found == trials.SKIPPED
    (tmp_path / "tests/test_step.py").write_text(test.replace("== 1", "> 0"), "utf-8")
    assert trials.tried(family, fault, "", found.test).found == trials.NOT_NOTICED


@pytest.mark.parametrize(
    "table", [table for table in TABLES if mutants.read(table).kind == "package"], ids=lambda t: t.stem
)
def test_the_tests_of_the_package_read_no_documents(table: Path) -> None:
    """These faults are planted in a copy of the package and its tests: tests that read documents are in tests/house."""
    places = [ROOT / "tests" / argument.partition("::")[0] for argument in mutants.read(table).arguments]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("test_*.py"))]
    assert files
    for file in files:
        found = re.search(r"parents\[\d\][^\n]*(docs|README|CHANGELOG|notebooks)", file.read_text("utf-8"))
        assert not found, f"{file.relative_to(ROOT)} reads {found[0]}, which the copy lacks"
