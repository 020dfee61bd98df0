"""The machine code of a cubin, read with NVIDIA's disassembler, which needs no GPU."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

LOAD, PRODUCT = "LDSM", "HMMA"  # from shared memory for tensor cores, and on them
LEAVES = {"BRA", "BRX", "JMP", "JMX", "CALL", "RET", "EXIT", "BSYNC", "BAR"}  # where the straight line of code ends


def disassembler() -> str | None:
    """Return the path of nvdisasm, from the package nvidia-cuda-nvdisasm or an installed toolkit, or None."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        for found in sorted(Path(place).glob("*/bin/nvdisasm")):
            return str(found)
    return shutil.which("nvdisasm")


def instructions(cubin: Path) -> dict[str, list[str]]:
    """Return the names of the instructions of each kernel, in the order of the machine code."""
    command = [disassembler() or "nvdisasm", "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if section := re.match(r"//-+ \.text\.(\S+) -", line):
            current = found.setdefault(section[1], [])
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", line):
            current.append(instruction[1])
    return found


def products_in_line(names: Sequence[str]) -> list[int]:
    """Return how many products on tensor cores each straight line of code has, without those that have none."""
    counts = [0]
    for name in names:
        if name in LEAVES:
            counts.append(0)
        counts[-1] += name == PRODUCT
    return [count for count in counts if count]


def interruptions(names: Sequence[str]) -> int:
    """Return how often code branches after a load for tensor cores and before the next product on them."""
    found, since_load = 0, False
    for name in names:
        found += since_load and name in LEAVES
        since_load = name == LOAD or (since_load and name not in LEAVES | {PRODUCT})
    return found
