"""A name with a slip, of anything that a user names from a known set, is answered by the name that was meant."""

import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv
from benchmarks.cases import SUITES, select_cases
from benchmarks.contenders import PEERS, select_contenders
from benchmarks.contenders.unfused import FUSIONS
from benchmarks.contenders.user import UserKernel
from tinyvit.data import load_dataset
from tinyvit.data.sources import DATASET_NAMES
from tinyvit.engine import Op
from tinyvit.recipe import load_recipe, recipe_names
from tinyvit.run.folder import load_run
from tinyvit.run.shipped import shipped_names
from tinyvit.study.check.faults import place_for, plantable
from tinyvit.study.subject import printed

KERNELS = ("attention", "layer_norm", "streamed_attention")


def own_kernel(name: str) -> object:
    Path("mine.py").write_text("import math\n\n" + "\n\n".join(f"def {known}(*x):\n    return x" for known in KERNELS))
    return UserKernel(f"mine.py:{name}")


def own_file(name: str) -> object:
    for known in KERNELS:
        Path(f"{known}.py").write_text("def run(*x):\n    return x\n")
    return UserKernel(f"{name.removesuffix('.py')}.py:run")


def trace() -> tv.study.Trace:
    with tv.study.trace() as recorded:
        tv.nn.Mlp(4)(np.ones((2, 4), np.float32)).sum().backward()
    return recorded


Named = tuple[Callable[[str], object], Iterable[str]]
SETS: dict[str, Named] = {
    "recipe": (load_recipe, recipe_names()),
    "data set": (lambda name: load_dataset(name, "test"), DATASET_NAMES),
    "run": (load_run, shipped_names()),
    "operation": (lambda name: printed(name, None, None, None), sorted(Op.registry)),
    "fault": (lambda name: place_for(name, trace()), plantable()),
    "operation of a trace": (lambda name: trace().text(name), ["linear", "gelu"]),
    "peer": (lambda name: select_contenders((name,), ()), [spec.name for spec in PEERS]),
    "fusion": (lambda name: select_contenders((), (), (name,)), FUSIONS),
    "shape": (lambda name: select_cases(SUITES["attention"], (name,)), ["digits-s", "mnist-s"]),
    "own kernel": (own_kernel, KERNELS),
    "own file": (own_file, [f"{known}.py" for known in KERNELS]),
}


def slips(name: str) -> set[str]:
    """The name with a letter lost, doubled or swapped with the next, and in capital letters."""
    middle = len(name) // 2
    lost, doubled = name[:middle] + name[middle + 1 :], name[:middle] + name[middle] + name[middle:]
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    return {lost, doubled, swapped, name.upper()} - {name}


@pytest.mark.parametrize("what", SETS)
def test_a_name_with_a_slip_is_answered_by_the_one_that_was_meant(what: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    find, names = SETS[what]
    known = [name for name in names if len(name) >= 4]
    for name in random.Random(0).sample(known, min(4, len(known))):
        for slip in slips(name) - set(names):
            with pytest.raises(Exception, match="did you mean") as caught:
                find(slip)
            meant = re.findall(r"\(did you mean '([^']+)'\?\)", str(caught.value))
            assert meant, str(caught.value)
            assert name in meant, (slip, str(caught.value))


def test_a_name_like_none_is_answered_without_a_guess(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for what, (find, _) in SETS.items():
        with pytest.raises(Exception, match="qqqqq") as caught:
            find("qqqqqqqqqqqqqqqq")
        assert "did you mean" not in str(caught.value), what
