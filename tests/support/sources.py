"""The project's own source files, and what they import: read with `ast`, without running any of them."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tinyvit", "kernels", "benchmarks")


def module_name(path: Path) -> str:
    """The name a file is imported under; the folder kernels/ is installed as `tinyvit.kernels`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("tinyvit", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Module names to files.
FILES = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file. It is shared, so nobody may change it."""
    return ast.parse(path.read_text("utf-8"))


@cache
def imported(name: str) -> frozenset[str]:
    """Every module that a module imports: at its top, inside a function, and under TYPE_CHECKING.

    Where a name is imported from a package of this project and is a file of its own, that file is meant.
    """
    package = name if name in PACKAGES else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(parsed(FILES[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            deeper = {f"{base}.{alias.name}" for alias in node.names}
            found |= (deeper & FILES.keys()) | ({base} if deeper - FILES.keys() else set())
    return frozenset(found)


def imported_files(name: str) -> frozenset[str]:
    """Those of the imported modules that are files of this project."""
    return imported(name) & FILES.keys()
