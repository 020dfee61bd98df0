"""Run the scripts of exported pages, and WebAssembly, with Node.js."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyvit.program.wasm import ASSETS

# Runs a module on each row of the standard input, and writes all outputs.
_RUN = """
const fs = require("fs");
const [file, taken, given] = [process.argv[1], ...process.argv.slice(2, 4).map(JSON.parse)];
const made = new WebAssembly.Module(fs.readFileSync(file));
if (WebAssembly.Module.imports(made).length) throw new Error("the module has imports");
const model = new WebAssembly.Instance(made, {}).exports;
const input = fs.readFileSync(0);
const row = 4 * taken.reduce((total, [, count]) => total + count, 0);
for (let start = 0; start < input.length; start += row) {
  let at = start;
  for (const [name, count] of taken) {
    new Uint8Array(model.memory.buffer, model[name].value, 4 * count).set(input.subarray(at, at + 4 * count));
    at += 4 * count;
  }
  if (model.run() !== 0) throw new Error("run does not return 0");
  for (const [name, count] of given) {
    fs.writeSync(1, new Uint8Array(model.memory.buffer, model[name].value, 4 * count));
  }
}
"""


def node() -> str:
    """Return the path of Node.js; the test is skipped where it is absent."""
    found = shutil.which("node") or shutil.which("nodejs")
    if found is None:
        pytest.skip("needs Node.js: there is none")
    return found


def clang() -> None:
    """Skip the test where there is no clang with a linker for WebAssembly."""
    if shutil.which("clang") is None or shutil.which("wasm-ld") is None:
        pytest.skip("needs clang and wasm-ld (apt install clang lld)")


def evaluated(expression: str, *arguments: Any) -> Any:
    """Return the value of an expression of JavaScript in which `given` has the arguments, after prepare.js.

    Arguments and value are what JSON can hold; arrays of bytes are lists.
    """
    script = (
        f"{(ASSETS / 'prepare.js').read_text('utf-8')}\n"
        "const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
        f"console.log(JSON.stringify({expression}, (_, x) => ArrayBuffer.isView(x) ? Array.from(x) : x));"
    )
    done = subprocess.run(
        [node(), "-e", script], input=json.dumps(arguments), check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def run_module(path: Path, wasm: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of a `Wasm` in a file for each row of the inputs."""
    taken = [[name, int(np.prod(shape))] for name, shape in wasm.inputs.items()]
    given = [[name, int(np.prod(shape))] for name, shape in wasm.outputs.items()]
    path.write_bytes(wasm.code)
    rows = [x.astype("f4" if x.dtype.kind == "f" else "i4") for x in inputs]
    fed = b"".join(x[i].tobytes() for i in range(len(rows[0])) for x in rows)
    command = [node(), "-e", _RUN, str(path), json.dumps(taken), json.dumps(given)]
    done = subprocess.run(command, input=fed, check=True, capture_output=True)
    made = np.frombuffer(done.stdout, np.float32).reshape(len(rows[0]), -1)
    parts = np.split(made, np.cumsum([count for _, count in given])[:-1], axis=1)
    return [part.reshape(-1, *shape[1:]) for part, shape in zip(parts, wasm.outputs.values(), strict=True)]
