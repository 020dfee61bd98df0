"""Every fact about an operation is in its class: no other file has a table whose keys are names of operations.

The test reads dictionaries, sets, comparisons and `match` statements in the sources, and looks for the registered names
as keys. Some names are also words with another meaning; those stand below, with the meaning.
"""

import ast
from collections.abc import Iterator

import pytest
from sources import FILES, parsed

from tinyvit.engine import Op

OPERATIONS = {name for name, op in Op.registry.items() if op.__module__.startswith("tinyvit.")}
OTHER_MEANINGS = {
    "tinyvit.data.coco": ("mean split where", "attributes of a data set, and the place of an annotation"),
    "tinyvit.data.folders": ("split", "a column of a table"),
    "tinyvit.data.own_texts": ("split", "a column of a table"),
    "tinyvit.data.things": ("mean split", "attributes of a data set"),
    "tinyvit.dense": ("pad", "the margin of a text in a picture"),
    "tinyvit.interop.configs": ("dropout gelu layer_norm relu silu", "words of the configurations of others"),
    "tinyvit.interop.save": ("mean", "a way to pool tokens"),
    "tinyvit.models.vit": ("mean", "a way to pool tokens"),
    "tinyvit.nn.mlp": ("gelu relu silu", "the names of activations"),
    "tinyvit.nn.patches": ("linear", "a kind of stem"),
    "tinyvit.optim.optimizers": ("embedding", "a part of a parameter's name"),
    "tinyvit.optim.schedules": ("linear", "a kind of schedule"),
    "tinyvit.run.own_images": ("flip", "a key of recipes"),
    "tinyvit.run.export": ("mean", "a field of the metadata of an ONNX file"),
    "tinyvit.study.page.document": ("sum", "the origin of a value: gradients that were added"),
    "tinyvit.study.page.write": ("attention", "a view of the page"),
    "tinyvit.study.rules.docstrings": ("sqrt sum", "words of the formulas in docstrings"),
    "tinyvit.tasks.segment": ("linear", "a kind of head"),
    "tinyvit.tasks.base": ("dropout", "an argument of a layer"),
}
BY_FUNCTION = "tinyvit.study.rules.functions"  # its keys are functions of `xp`, most of them NumPy's


def keys_in(tree: ast.AST) -> Iterator[str]:
    """The strings that a file uses as keys: of dictionaries and sets, in comparisons, in `match` statements."""
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Dict):
            found = list(node.keys)
        elif isinstance(node, ast.Set):
            found = list(node.elts)
        elif isinstance(node, ast.MatchValue):
            found = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("dict.fromkeys", "set", "frozenset"):
            found = [element for argument in node.args for element in getattr(argument, "elts", [])]
        elif isinstance(node, ast.Compare):
            found = [x for side in (node.left, *node.comparators) for x in getattr(side, "elts", [side])]
        yield from (x.value for x in found if isinstance(x, ast.Constant) and isinstance(x.value, str))


def outside_functional() -> list[str]:
    names = [name for name in FILES if name.startswith("tinyvit.") and not name.startswith("tinyvit.kernels")]
    return [name for name in names if not name.startswith("tinyvit.functional") and name != BY_FUNCTION]


def test_no_table_is_keyed_by_operations() -> None:
    for name in outside_functional():
        words, _ = OTHER_MEANINGS.get(name, ("", ""))
        assert set(keys_in(parsed(FILES[name]))) & OPERATIONS == set(words.split()), name


@pytest.mark.parametrize(
    "table",
    [
        "{'softmax': 1}",
        "{'softmax', 'other'}",
        "if op.name == 'softmax': pass",
        "if op.name in ('gelu', 'softmax'): pass",
        "dict.fromkeys(('softmax',), 1)",
        "match op.name:\n    case 'softmax': pass",
    ],
)
def test_such_a_table_is_found(table: str) -> None:
    assert "softmax" in set(keys_in(ast.parse(table))) & OPERATIONS
