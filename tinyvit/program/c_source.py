"""Write a program as C99: `NAME.c`, `NAME.h` with the weights, and an example with a main function."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import atomic_write
from .c_arrays import FLOAT, C
from .c_operations import COperations
from .c_pieces import Weight
from .c_text import BEST, BODIES, HEADER, MAIN, SOURCE
from .graph import leaves
from .lower import ExportError, lowered
from .onnx import INT8_TOLERANCE, example_inputs

_TOLERANCE = 1e-4  # of the largest output, by which main.c may differ; compilers sum and round in other ways
_SHOWN = 1000  # numbers of an output that main.c prints


@dataclass(frozen=True)
class WrittenC:
    """Exported C.

    Attributes
    ----------
    files : the names in `folder`.
    memory : bytes of static working memory.  weights : bytes of constants.
    inputs, outputs : by the names of the arguments of the function, "float" or "int" and the shape.
    """

    folder: Path
    files: tuple[str, ...]
    memory: int
    weights: int
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]

    def __str__(self) -> str:
        return (
            f"{self.folder} ({', '.join(self.files)}): {self.weights:,} bytes of weights and {self.memory:,} bytes of "
            "working memory"
        )


def export_c(
    program: Any,
    folder: str | Path,
    *example: np.ndarray,
    name: str = "model",
    int8: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> WrittenC:
    """Write `program` into a folder; see `Program.export_c`."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ExportError(f"export to C: name is {name!r}; it must be small letters, digits and _, a letter first")
    graph = program.graph
    wrong = [graph.values[i].name for i in graph.inputs if graph.values[i].dtype.kind not in "fiub"]
    ends = [graph.values[i] for i in (*graph.inputs, *graph.outputs)]
    wrong += [v.name or "an output" for v in ends if v.dtype.kind == "f" and v.dtype != FLOAT]
    if wrong:
        raise ExportError(f"export to C: {wrong[0]} is not float32; call model.to('float32') before freezing")
    sizes = (1,) * len(graph.letters)
    xp = C(int8)
    xp.operations = COperations(xp)
    inputs = []
    for number in graph.inputs:
        value = graph.values[number]
        shape = [n if isinstance(n, int) else n.at(sizes) for n in value.shape]
        inputs.append(xp.input(_word(value.name), shape, value.dtype))
    floats = [x if x.dtype == FLOAT else xp.each("(float){0}", x, dtype=x.dtype) for x in inputs]
    outputs = [xp.array(x) for x in lowered(graph, xp, floats, sizes)]
    names = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
    for x, output in zip(outputs, names, strict=True):
        xp.write_output(x, output)
    statements = xp.finish()
    given = list(example) if example else example_inputs(graph, rows=1)
    facts = _Facts(name, inputs, list(zip(names, outputs, strict=True)), metadata or {})
    given = [np.asarray(x)[:1] for x in given]
    expected = [np.asarray(x) for x in leaves(program(*given))]
    texts = _texts(xp, facts, statements) | _example(facts, given, expected, xp.is_int8)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        atomic_write(target / file, text.encode())
    weights = sum(w.bytes for w in xp.weights.values())
    return WrittenC(target, tuple(texts), 4 * xp.memory, weights, facts.taken, facts.given)


@dataclass(frozen=True)
class _Facts:
    """What the files state about inputs and outputs."""

    name: str
    inputs: Sequence[Any]
    outputs: Sequence[tuple[str, Any]]
    metadata: Mapping[str, Any]

    @property
    def macro(self) -> str:
        return self.name.upper()

    @property
    def taken(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {x.root: (_c_type(x.dtype), tuple(x.shape)) for x in self.inputs}

    @property
    def given(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: ("float", tuple(x.shape)) for name, x in self.outputs}

    @property
    def parameters(self) -> str:
        given = [f"const {kind} *{name}" for name, (kind, _) in self.taken.items()]
        return ", ".join([*given, *(f"float *{name}" for name in self.given)])

    @property
    def defines(self) -> str:
        lines = [f"#define {self.macro}_{x.root.upper()}_SIZE {x.size}  /* {_shape(x)} */" for x in self.inputs]
        lines += [f"#define {self.macro}_{name.upper()}_SIZE {x.size}  /* {_shape(x)} */" for name, x in self.outputs]
        for key, value in self.metadata.items():
            comment = re.sub(r"\*/|/\*", "", str(value).encode("ascii", "backslashreplace").decode())
            lines.append(f"/* {key}: {comment} */".replace("\n", " "))
        return "\n".join(lines)


def _texts(xp: C, facts: _Facts, statements: Sequence[str]) -> dict[str, str]:
    """Return the files of the model by name."""
    name, macro = facts.name, facts.macro
    weights = "\n".join(_weight_text(w) for w in xp.weights.values())
    size = sum(w.bytes for w in xp.weights.values())
    title = "A model" if name == "model" else f"The model {name}"
    names = {"name": name, "macro": macro, "title": title, "parameters": facts.parameters}
    source = SOURCE.format(
        **names,
        memory=4 * xp.memory,
        weights=size,
        kind=" (8 bits, a factor for each row or group)" if xp.is_int8 else " (float)",
        floats=max(1, xp.memory),
        bodies="\n".join(text for key, text in BODIES.items() if key in xp.used),
        statements="\n    ".join(statements),
    )
    shapes = ", ".join(f"{x.root} {_shape(x)}" for x in facts.inputs)
    header = HEADER.format(**names, facts=facts.defines, inputs=shapes, weights=weights)
    return {f"{name}.c": source, f"{name}.h": header}


def _example(
    facts: _Facts, given: Sequence[np.ndarray], expected: Sequence[np.ndarray], is_int8: bool
) -> dict[str, str]:
    """Return the files that run the model once, and compare its outputs with those of the program."""
    arrays = [
        f"static const {_c_type(x.dtype)} {x.root}[{x.size}] = {{{_numbers(row)}}};\n"
        for x, row in zip(facts.inputs, given, strict=True)
    ]
    arrays += [
        f"static const float expected_{name}[{x.size}] = {{{_numbers(row.astype(np.float32))}}};\n"
        for (name, x), row in zip(facts.outputs, expected, strict=True)
    ]
    names = [name for name, _ in facts.outputs]
    size, classes = facts.outputs[0][1].size, facts.metadata.get("classes", ())
    named = len(names) == 1 and isinstance(classes, list | tuple) and len(classes) == size
    quoted = ", ".join(f'"{_c_string(str(label))}"' for label in classes) if named else ""
    macro = facts.macro
    text = MAIN.format(
        name=facts.name,
        names=f"/* The classes, in the order of the outputs. */\nstatic const char *const names[] = {{{quoted}}};\n\n"
        if named
        else "",
        tolerance=INT8_TOLERANCE if is_int8 else f"{_TOLERANCE:f}".rstrip("0"),
        shown=f"{_SHOWN}",
        head='"%-6s %-12s %s\\n"' if named else '"%-6s %s\\n"',
        head_of_names=', "class"' if named else "",
        line='"%-6d %-12.6g %s\\n", i, found[i], names[i]' if named else '"%-6d %.6g\\n", i, found[i]',
        outputs="\n    ".join(f"static float {name}[{macro}_{name.upper()}_SIZE];" for name in names),
        arguments=", ".join([*(x.root for x in facts.inputs), *names]),
        calls="\n    ".join(
            f'wrong += compared("{name}", {name}, expected_{name}, {macro}_{name.upper()}_SIZE);' for name in names
        ),
        best=""
        if len(names) > 1
        else BEST.format(
            macro=macro,
            line='"largest: number %d, class %s\\n", best, names[best]' if named else '"largest: number %d\\n", best',
        ),
    )
    title = "/* What main.c runs the model on, and the outputs that tinyvit computed for it. */\n"
    return {"example.h": title + "".join(arrays), "main.c": text}


def _c_string(text: str) -> str:
    """Return a text as it stands between the quotes of a C string, in UTF-8: other bytes than letters as codes."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode("utf-8")
    )


def _weight_text(weight: Weight) -> str:
    kind = "float" if weight.form == "float" else "signed char"
    text = f"static const {kind} {weight.name}[{weight.values.size}] = {{{_numbers(weight.values)}}};"
    if weight.form != "float":
        scales = f"{weight.name}_scale[{weight.scales.size}] = {{{_numbers(weight.scales)}}};"
        text += f"\nstatic const unsigned short {scales}"
    return text


def _numbers(array: np.ndarray) -> str:
    """Return numbers as C writes them; nine digits give a float exactly."""
    flat = np.asarray(array).reshape(-1)
    if flat.dtype.kind != "f":
        words = [str(int(x)) for x in flat]
    else:
        words = [
            f"{x:.9g}" if np.isfinite(x) else "NAN" if np.isnan(x) else f"{'-' * bool(x < 0)}INFINITY" for x in flat
        ]
        words = [w + "f" if "." in w or "e" in w else w if w[-1] in "NY" else w + ".0f" for w in words]
    lines = [", ".join(words[i : i + 12]) for i in range(0, len(words), 12)]
    return "\n  " + ",\n  ".join(lines) if len(lines) > 1 else "".join(lines)


def _word(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name) or "x"


def _c_type(dtype: np.dtype) -> str:
    return "float" if dtype.kind == "f" else "int"


def _shape(x: Any) -> str:
    return "(" + ", ".join(map(str, x.shape)) + ")"
