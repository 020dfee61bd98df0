"""NVRTC compiles every kernel for every architecture, without a GPU or driver: no warnings, no spills, no stack.

All of that takes a quarter of an hour, so `compiled.tsv` records what has compiled: for each source and architecture a
digest of all that the outcome depends on, which is the sources, the kernels, their limits and the version of NVRTC.
What is recorded is not compiled again, except one of ten, which every change of the sources draws anew.
TINYVIT_NVRTC=all compiles everything, TINYVIT_NVRTC=record what is not recorded; both then record what has compiled.
"""

import hashlib
import importlib
import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from emulator import included
from mutants.record import one_of_ten, seed_of_sources
from tinyvit.kernels import registry
from tinyvit.kernels.cuda import compiler, device
from tinyvit.kernels.cuda.compiler import ARCHITECTURES, CompilationFailed, CompilerMissing, compile_cubin, resources

RECORD = Path(__file__).with_name("compiled.tsv")
WISH = os.environ.get("TINYVIT_NVRTC", "")
MODULES = sorted({spec.module for spec in registry.SPECS if spec.module.endswith("cupy_raw")})


@pytest.fixture(autouse=True)
def _compiler() -> None:
    try:
        compiler.nvrtc_version()
    except CompilerMissing as reason:
        pytest.skip(str(reason))


def kernels_of(module: str, arch: int) -> dict[str, dict[str, int]]:
    """Return, by source, each kernel that can run on an architecture and the most registers that it may use."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for kernel, registers in importlib.import_module(module).kernels():
        if arch >= 80 or "bfloat_t" not in kernel.expression:
            found[kernel.source][kernel.expression] = registers
    return found


def complaints(source: str, allowed: dict[str, int], arch: int) -> Iterator[str]:
    """Yield the warnings for the kernels of a file on an architecture, and their excess resources."""
    cubin = compile_cubin(source, sorted(allowed), arch)
    yield from (line for line in cubin.log.splitlines() if "warning" in line or "remark" in line)
    used = {r.symbol: r for r in resources(cubin.log)}
    for expression, most in allowed.items():
        found = used[cubin.names[expression]]
        if found.stack or found.spills or found.registers > most:
            yield f"sm_{arch} {expression}: {found}; it may have {most} registers, no stack and no spills"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_compiles(module: str) -> None:
    """Compile the first kernel of each file, for one architecture. Constants that only others use are unused then."""
    for source, allowed in kernels_of(module, 90).items():
        first = dict(list(allowed.items())[:1])
        assert [line for line in complaints(source, first, 90) if not _is_about_unused(line)] == []


def _is_about_unused(line: str) -> bool:
    return "was declared but never referenced" in line or "diag-suppress" in line


def version() -> tuple[object, ...]:
    """Return the version of NVRTC, with that of its package if it comes from one."""
    packages = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
    return compiler.nvrtc_version(), [d.version for name in packages for d in metadata.distributions(name=name)]


def digest_of(source: str, allowed: dict[str, int], arch: int) -> str:
    """Return a digest of everything that the messages of NVRTC for these kernels depend on."""
    kernels = sorted(allowed.items())
    found = hashlib.sha256(repr((source, kernels, arch, version())).encode())
    for path in (Path(compiler.__file__), *included(compiler.KERNELS / source)):
        if path.is_relative_to(compiler.KERNELS):  # the other headers are those of the emulator
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def recorded(text: str) -> dict[tuple[str, str], str]:
    """Return the digests in the text of the record, by source and architecture."""
    rows = [line.split("\t") for line in text.splitlines()]
    return {(source, arch): digest for source, arch, digest in rows}


def record(source: str, arch: int, digest: str) -> None:
    """Write that the kernels of a source have compiled for an architecture; other processes may do so as well."""
    import fcntl

    with open(RECORD, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows = recorded(file.read()) | {(source, str(arch)): digest}
        file.truncate(0)
        file.write("".join("\t".join((*key, rows[key])) + "\n" for key in sorted(rows)))


@cache
def seed() -> str:
    return seed_of_sources()


def is_due(source: str, arch: int, digest: str) -> bool:
    """Whether the kernels of a source are to be compiled for an architecture."""
    known = recorded(RECORD.read_text("utf-8")).get((source, str(arch))) == digest
    drawn = WISH != "record" and one_of_ten(f"{source} {arch}", seed())
    return not known or drawn or WISH == "all"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("module", MODULES)
def test_every_kernel_compiles_for_every_architecture(module: str, arch: int) -> None:
    found = [
        (source, allowed, digest_of(source, allowed, arch)) for source, allowed in kernels_of(module, arch).items()
    ]
    due = [each for each in found if is_due(each[0], arch, each[2])]
    if not due:
        pytest.skip("NVRTC of this version has compiled the same sources before")
    wrong = {source: list(complaints(source, allowed, arch)) for source, allowed, _ in due}
    if WISH:
        for source, _, digest in due:
            if not wrong[source]:
                record(source, arch, digest)
    assert not any(wrong.values()), "\n".join(line for lines in wrong.values() for line in lines)


def test_what_a_cubin_depends_on_changes_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record must not know a source, a limit, an architecture or a compiler that is another one now."""
    source, allowed = next(iter(kernels_of(MODULES[0], 90).items()))
    digest = digest_of(source, allowed, 90)
    assert digest == digest_of(source, dict(reversed(allowed.items())), 90)
    others = {digest_of(source, {**allowed, "other<float>": 32}, 90), digest_of(source, allowed, 100)}
    others.add(digest_of(source, {kernel: most + 1 for kernel, most in allowed.items()}, 90))
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: (0, 0))
    others.add(digest_of(source, allowed, 90))
    monkeypatch.undo()
    real = Path.read_bytes
    for changed in (Path(compiler.__file__), compiler.KERNELS / source, compiler.KERNELS / "cuda" / "prims.cuh"):
        monkeypatch.setattr(Path, "read_bytes", lambda p, c=changed: real(p) + (b"//" if p == c else b""))
        others.add(digest_of(source, allowed, 90))
        monkeypatch.undo()
    assert len(others) == 7
    assert digest not in others


def instructions(cubin: compiler.Cubin) -> int:
    """Return how many instructions of 16 bytes the kernels of a cubin have, from the sections of the file."""
    code = cubin.code
    (table,), (size, count, names) = struct.unpack_from("<Q", code, 40), struct.unpack_from("<HHH", code, 58)
    sections = [struct.unpack_from("<IIQQQQ", code, table + i * size) for i in range(count)]
    found = 0
    for name, _, _, _, _, length in sections:
        begin = sections[names][4] + name
        found += length if code[begin : code.index(b"\0", begin)].startswith(b".text.") else 0
    return found // 16


@pytest.mark.parametrize(("direction", "most"), [("forward", 320), ("backward", 450)])
def test_gelu_is_short_enough_to_be_bound_by_memory(direction: str, most: int) -> None:
    """By erfcf, 8 elements in bfloat16 would take 448 and 560 instructions; by erff they take 248 and 368."""
    cubin = compile_cubin("gelu/gelu.cu", [f"gelu_{direction}<bfloat_t, 8, false>"], 90)
    assert instructions(cubin) <= most


def test_a_source_that_does_not_compile_is_an_error_with_its_log() -> None:
    with pytest.raises(CompilationFailed, match="missing_kernel"):
        compile_cubin("dropout/dropout.cu", ["missing_kernel<float>"], 90)


def test_cubins_are_kept_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_cubin("dropout/dropout.cu", ["dropout_1<float>"], 90)
    monkeypatch.setattr(compiler, "_compiled", None)  # a second compilation would fail
    assert compile_cubin("dropout/dropout.cu", ["dropout_1<float>"], 90) == first


def test_every_dtype_of_the_registry_has_a_name_in_cuda() -> None:
    assert {str(d) for spec in registry.SPECS if spec.device == "cuda" for d in spec.dtypes} == device.CTYPES.keys()
