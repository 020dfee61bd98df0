"""Compile exported C to WebAssembly, with clang and the linker of LLVM."""

import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .c_source import export_c
from .lower import ExportError

ASSETS = Path(__file__).with_name("assets")  # its math.h takes the place of a C library's
# Without fused multiply-adds and calls of a library, so that the same C gives the same bits everywhere. -O3 makes the
# code larger and, measured in V8, slower.
_FLAGS = ("--target=wasm32", "-std=c99", "-Os", "-fno-builtin", "-ffp-contract=off", "-nostdlib", "-nostdlibinc")
_INSTALL = "`apt install clang lld` on Debian and Ubuntu, `dnf install clang lld` on Fedora, `brew install llvm lld`"
_VERSIONS = range(40, 10, -1)  # of clang, where it is installed under its version only
# Memory for inputs and outputs, which the page writes and reads, and a function that runs the model once.
_ENTRY = """#include "model.h"
{arrays}
int run(void) {{ return model_run({names}); }}
"""


@dataclass(frozen=True)
class Wasm:
    """A program as WebAssembly, for one input at a time.

    Attributes
    ----------
    code : of a module that imports nothing. It exports `memory`, the function `run`, which returns 0 or -1 for an id
        out of its range, and for each input and output, by its name, the address of its numbers.
    inputs, outputs : shapes by name, in order.
    """

    code: bytes
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


def wasm_of(program: Any, int8: bool = False) -> Wasm:
    """Compile `program`. Raises ExportError if there is no compiler for that, or C has no form of the program."""
    compiler = find_clang()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = export_c(program, folder, int8=int8)
        arrays = {**made.inputs, **made.outputs}
        texts = [f"{kind} {key}[{max(1, math.prod(shape))}];" for key, (kind, shape) in arrays.items()]
        (folder / "entry.c").write_text(_ENTRY.format(arrays="\n".join(texts), names=", ".join(arrays)))
        exported = [f"-Wl,--export={key}" for key in ("run", *arrays)]
        files = ("entry.c", "model.c", "-o", "model.wasm")
        command = [compiler, *_FLAGS, f"-I{ASSETS}", *files, "-Wl,--no-entry", "-Wl,--strip-all", *exported]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / "model.wasm").is_file():
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it wrote nothing"]
            raise ExportError(
                f"export to WebAssembly: {compiler} failed ({lines[0][:300]}); it needs clang with the target wasm32 "
                f"and the linker wasm-ld: {_INSTALL}"
            )
        code = (folder / "model.wasm").read_bytes()
    shapes = [{key: shape for key, (_, shape) in some.items()} for some in (made.inputs, made.outputs)]
    return Wasm(code, *shapes)


def find_clang() -> str:
    """Return the path of clang, the newest of several versions. Raises ExportError if there is none."""
    for name in ("clang", *(f"clang-{number}" for number in _VERSIONS)):
        if found := shutil.which(name):
            return found
    raise ExportError(f"export to WebAssembly needs clang and the linker wasm-ld, and there is no clang: {_INSTALL}")
