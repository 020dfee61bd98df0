"""Compiling code that is only ever inlined into other code.

Numba optimises every function as a module of its own and makes machine code of it, though all that is kept of the parts
of a kernel are their copies inside of it. A part compiled here stops before that: it is typed, lowered and simplified,
and the rest is done once, for the whole kernel. This took a quarter off the time that a first training step compiles.
"""

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _Part(JITCodeLibrary):
    """Code to be linked into that of a kernel, with the parts that it uses itself."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """No machine code, no address."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> "_WithoutEnvironments":
        return _WithoutEnvironments()


class _WithoutEnvironments:
    """What Numba tells of a new function's environment (its module's names, for calls of Python), unused in parts."""

    def set_env(self, name: str, environment: Any) -> None:
        pass


class PartCompiler(Compiler):
    """Numba's pipeline with a library of that kind: `numba.njit(forceinline=True, pipeline_class=PartCompiler)`."""

    def __init__(self, typing_context: Any, target_context: Any, library: Any, *rest: Any) -> None:
        if library is None:
            library = _Part(target_context.codegen(), "tinyvit_part")
        super().__init__(typing_context, target_context, library, *rest)
