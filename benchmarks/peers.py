"""Libraries that tinyvit is compared with. Each may be absent, or installed and broken."""

import importlib


def reason_to_skip(library: str) -> str | None:
    """The reason why `library` cannot be used in this process; None if it was imported.

    A broken library raises whatever it likes when it is imported: PyTorch without its CUDA libraries an OSError, a
    library built for another NumPy a ValueError.
    """
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:
        return f"{library} is installed, but cannot be imported ({describe_error(error)})"
    return None


class OwnCodeError(Exception):
    """An exception of a user's code; the message has its kind, what it said, and the line that raised it."""


def describe_error(error: Exception) -> str:
    """The kind of an error and its message, in one line."""
    if isinstance(error, OwnCodeError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
