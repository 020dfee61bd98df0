"""Compile functions that are only ever inlined into other compiled functions.

Numba optimizes every function as a module of its own and generates machine code for it, although all that a kernel
keeps of the functions it calls are the copies inlined into it. A function compiled with `InlinedCompiler` stops before
that: it is typed, lowered and simplified, and the rest is done once, for the whole kernel. This takes a quarter off the
time that a first training step compiles.
"""

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _InlinedLibrary(JITCodeLibrary):
    """The code of one function, to be linked into a kernel together with the functions that it calls itself."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: there is no machine code, so there is no address."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> "_WithoutEnvironments":
        return _WithoutEnvironments()


class _WithoutEnvironments:
    """Stands in for Numba's code generator when it stores a function's environment.

    The environment holds the names of the module for calls of Python functions, of which inlined functions have none.
    """

    def set_env(self, name: str, environment: Any) -> None:
        pass


class InlinedCompiler(Compiler):
    """Numba's pipeline with such a library: `numba.njit(forceinline=True, pipeline_class=InlinedCompiler)`."""

    def __init__(self, typing_context: Any, target_context: Any, library: Any, *rest: Any) -> None:
        if library is None:
            library = _InlinedLibrary(target_context.codegen(), "tinyvit_inlined")
        super().__init__(typing_context, target_context, library, *rest)
