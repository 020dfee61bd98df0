"""The tiles for 64-bit ARM processors: the generator's code compiled for one, inspected, and run in an emulator.

The emulator needs `qemu-aarch64` and a linker for aarch64 (Debian's packages qemu-user and binutils-aarch64-linux-gnu,
or lld). Programs need no C library: they read a buffer from standard input, call a tile, and write the buffer back.
"""

import re
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from llvmlite import binding
from tinyvit.kernels.cpu.processor import is_arm
from tinyvit.kernels.linear.tiles import FORMS, VECTORS, tile_module, write_tiles

NEON = FORMS["neon"]
ROOM = 1 << 18  # bytes of the buffer
FIELDS = 13  # words of 64 bits before the data: which tile, then its arguments, addresses as offsets
Array = np.ndarray

# A function of four arguments, the number of a system call and what that is given: mov x8, x0; mov x0, x1; mov x1, x2;
# mov x2, x3; svc #0; ret. (LLVM as it comes with llvmlite does not assemble for another processor.)
SYSTEM_CALL = (0xAA0003E8, 0xAA0103E0, 0xAA0203E1, 0xAA0303E2, 0xD4000001, 0xD65F03C0)

# A program for Linux on aarch64. Of its system calls, 63 reads, 64 writes, and 93 ends it.
PROGRAM = """
target triple = "aarch64-unknown-linux-gnu"

@buffer = internal global [{room} x i8] zeroinitializer, align 64
@call = internal constant [6 x i32] [{code}], align 4

{declared}

define void @_start() {{
entry:
  %base = ptrtoint [{room} x i8]* @buffer to i64
  br label %more
more:
  %have = phi i64 [ 0, %entry ], [ %sum, %more ]
  %at = add i64 %base, %have
  %left = sub i64 {room}, %have
  %got = call i64 @call(i64 63, i64 0, i64 %at, i64 %left)
  %sum = add i64 %have, %got
  %again = icmp sgt i64 %got, 0
  br i1 %again, label %more, label %ready
ready:
  %words = bitcast [{room} x i8]* @buffer to i64*
  %which = load i64, i64* %words
{arguments}
  switch i64 %which, label %out [
{cases}
  ]
{calls}
out:
  %w = call i64 @call(i64 64, i64 1, i64 %base, i64 {room})
  %e = call i64 @call(i64 93, i64 0, i64 0, i64 0)
  unreachable
}}
"""


def shapes() -> list[tuple[int, int, bool]]:
    """The rows and vectors of each tile, and whether its columns are masked, in the order of `write_tiles`."""
    return [(rows, v, masked) for rows in NEON.rows for v, masked in ((VECTORS, False), (VECTORS, True), (1, True))]


@cache
def machine() -> binding.TargetMachine:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple("aarch64-unknown-linux-gnu")
    return target.create_target_machine(cpu="generic", features="+neon", opt=3, reloc="static")


@cache
def tiles(dtype: str) -> str:
    """The tiles as LLVM IR."""
    module, functions = tile_module((dtype, dtype), NEON)
    module.triple = "aarch64-unknown-linux-gnu"
    write_tiles(functions, (dtype, dtype), NEON)
    return str(module)


def program(dtype: str) -> str:
    """LLVM IR of the program that calls the tile that its input asks for."""
    kinds = ["i8*", "i64", "i64", "i8*", "i64", "i8*", "i1", "i8*", "i64", "i64", "i64", "i1"]
    arguments = []
    for i, kind in enumerate(kinds, 1):
        arguments += [f"  %p{i} = getelementptr i64, i64* %words, i64 {i}", f"  %v{i} = load i64, i64* %p{i}"]
        if kind == "i8*":
            arguments += [f"  %s{i} = add i64 %base, %v{i}", f"  %x{i} = inttoptr i64 %s{i} to i8*"]
        elif kind == "i1":
            arguments.append(f"  %x{i} = trunc i64 %v{i} to i1")
        else:
            arguments.append(f"  %x{i} = add i64 %v{i}, 0")
    names = [function.name for function in tile_module((dtype, dtype), NEON)[1]]
    given = ", ".join(f"{kind} %x{i}" for i, kind in enumerate(kinds, 1))
    declared = "\n".join(f'declare void @"{name}"({", ".join(kinds)})' for name in names)
    return PROGRAM.format(
        code=", ".join(f"i32 {word}" for word in SYSTEM_CALL),
        declared=declared,
        room=ROOM,
        arguments="\n".join(arguments),
        cases="\n".join(f"    i64 {i}, label %tile{i}" for i in range(len(names))),
        calls="\n".join(f'tile{i}:\n  call void @"{name}"({given})\n  br label %out' for i, name in enumerate(names)),
    )


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The commands that run the programs, by dtype."""
    linker = shutil.which("aarch64-linux-gnu-ld") or shutil.which("ld.lld")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not linker or not emulator:
        pytest.skip("needs qemu-aarch64 and a linker for aarch64")
    folder: Path = tmp_path_factory.mktemp("neon")
    commands = {}
    for dtype in ("float32", "float64"):
        objects = [folder / f"{dtype}-{name}.o" for name in ("tiles", "program")]
        for path, code in zip(objects, (tiles(dtype), program(dtype)), strict=True):
            path.write_bytes(machine().emit_object(binding.parse_assembly(code)))
        subprocess.run([linker, "-static", "-N", "-o", folder / dtype, *objects], check=True)
        commands[dtype] = [emulator, str(folder / dtype)]
    return commands


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_inner_loop_of_a_whole_tile_fuses_and_keeps_its_sums_in_registers(dtype: str) -> None:
    assembly = machine().emit_assembly(binding.parse_assembly(tiles(dtype)))
    for rows in NEON.rows:
        name = f"tinyvit_tile_{rows}x{VECTORS}_{dtype}_{dtype}"
        function = re.search(rf"^{name}:\n(.*?)\.Lfunc_end", assembly, re.MULTILINE | re.DOTALL)
        assert function, name
        blocks = re.split(r"^\.LBB\w+:", function[1], flags=re.MULTILINE)
        loops = [block for block in blocks if block.count("fmla") == rows * VECTORS]
        assert len(loops) == 1, name

        assert not re.search(r"\b(sp|fmul|fadd|bl)\b", loops[0]), loops[0]


def run(command: list[str], a: Array, b: Array, bias: Array | None, c: Array, tile: int, accumulate: bool) -> Array:
    """Have a tile compute c = a b + bias, and return c with its frame; all else must be as before."""
    transposed = not a.flags.c_contiguous
    parts = [a.T if transposed else a, b, np.zeros(0, a.dtype) if bias is None else bias, c]
    offsets, data = [], bytearray(8 * FIELDS)
    for part in parts:
        data += bytes(64 - len(data) % 64) + b"\xa5" * 64
        offsets.append(len(data))
        data += np.ascontiguousarray(part).tobytes() + b"\xa5" * 64
    inner = (c.shape[1] + 1) * c.itemsize  # c has a frame one element wide
    fields = [tile, offsets[0], *a.strides, offsets[1], b.strides[0], offsets[2], bias is not None]
    fields += [offsets[3] + inner, c.strides[0], a.shape[1], c.shape[1] - 2, accumulate]
    data[: 8 * FIELDS] = struct.pack(f"<{FIELDS}q", *fields)
    data += bytes(ROOM - len(data))
    answer = bytearray(subprocess.run(command, input=data, capture_output=True, check=True).stdout)
    start, stop = offsets[3], offsets[3] + c.nbytes
    found = np.frombuffer(bytes(answer[start:stop]), c.dtype).reshape(c.shape)
    answer[start:stop] = data[start:stop]
    assert answer == data
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["overwrite", "accumulate", "bias"])
def test_every_tile_computes_its_part_of_a_product(emulated: dict[str, list[str]], dtype: str, mode: str) -> None:
    random = np.random.default_rng(3)
    lanes = NEON.vector_bytes // np.dtype(dtype).itemsize
    for tile, (rows, vectors, masked) in enumerate(shapes()):
        most = vectors * lanes
        columns = int(random.integers(1 + (vectors - 1) * lanes, most)) if masked else most
        depth = (0, 1, 7, 33)[tile % 4]
        a, b = random.standard_normal((rows, depth)).astype(dtype), random.standard_normal((depth, columns))
        a = np.asfortranarray(a) if tile % 2 else a
        b = b.astype(dtype)
        bias = random.standard_normal(columns).astype(dtype) if mode == "bias" else None
        c = np.full((rows + 2, columns + 2), 7, dtype)
        c[1:-1, 1:-1] = random.standard_normal((rows, columns))
        start = {"overwrite": 0, "accumulate": c[1:-1, 1:-1], "bias": bias}[mode]
        found = run(emulated[dtype], a, b, bias, c, tile, mode == "accumulate")
        exact = a.astype(float) @ b.astype(float) + start
        bound = (depth + 2) * np.finfo(dtype).eps * (abs(a).astype(float) @ abs(b) + abs(np.asarray(start)))
        assert (abs(found[1:-1, 1:-1] - exact) <= bound).all(), (rows, vectors, masked)
        assert (found[[0, -1]] == 7).all()
        assert (found[:, [0, -1]] == 7).all()


@pytest.mark.parametrize(
    ("triple", "known"),
    [("aarch64-unknown-linux-gnu", True), ("arm64-apple-darwin23", True), ("x86_64-pc-linux-gnu", False)],
)
def test_a_processor_is_known_by_its_triple(triple: str, known: bool) -> None:
    assert is_arm(triple) is known
