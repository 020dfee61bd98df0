"""Save and load states: nested mappings of arrays and scalars as safetensors files, written atomically.

An array is stored under the keys that lead to it, joined with "/". A flat state_dict therefore keeps its names, and any
safetensors reader can read it. The metadata entry "tinyvit" holds the nested mapping as JSON, with the scalars, the
order of the keys, a format version and a checksum over all of it and all arrays; `{"/": name}` stands for an array.
Keys must not contain "/", so this form is unambiguous. The checksum shows damage; it does not show who wrote a file.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .backend.files import MAX_DEPTH, open_file, parse_json, sync_folder
from .errors import CheckpointError

FORMAT_VERSION = 1

_SCALARS = (bool, int, float, str, type(None))
_DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)  # the names of files that `atomic_write` renames
_FOREIGN = (  # the first bytes of files that are often mistaken for checkpoints
    (b"PK\x03\x04", "a zip archive, as PyTorch and numpy.savez write them: store its arrays as safetensors"),
    (b"\x80", "a pickle, which tinyvit never opens because it can run code: store its arrays as safetensors"),
    (b"\x93NUMPY", "a NumPy .npy file: store its array as safetensors"),
    (b"\x89HDF", "an HDF5 file: store its arrays as safetensors"),
    (b"<", "an HTML page, probably from a failed download: download the file again"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
)


def atomic_write(path: str | os.PathLike[str], data: bytes, new: bool = False) -> None:
    """Replace the content of the file at `path` by `data`; at every moment it is either the old or the new content.

    A failed or interrupted write leaves no file behind. A process that is killed may leave a hidden file
    `.<name>.<random>.tmp`, which nothing reads; see `leftovers`.

    Raises
    ------
    OSError
        If the file cannot be written; the previous one is untouched. With `new` it must not exist.
    """
    target = Path(os.path.realpath(path))  # a link continues to point to the same file
    if target.exists() and not target.is_file():  # a device or a pipe would be replaced by a file
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _place_new(temporary, target)
        else:
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename, error.filename2 = str(path), None  # the name that the caller gave
        raise
    sync_folder(target.parent)


def _place_new(temporary: Path, target: Path) -> None:
    """Give the file `temporary` the name `target`. Raises FileExistsError if that exists, even since a moment ago."""
    try:
        if not hasattr(os, "link"):  # Python in a browser
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        os.link(temporary, target)
        temporary.unlink()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        target.touch(exist_ok=False)  # a file system without hard links
        os.replace(temporary, target)


def leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the temporary files in `folder` of processes that are in `atomic_write`, or were killed in it."""
    return [path for path in Path(folder).iterdir() if _TEMPORARY.fullmatch(path.name)]


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write `state` to `path` as one safetensors file, atomically.

    Parameters
    ----------
    path : str or path
        The file to write; its folder must exist.
    state : mapping
        Keys are strings without "/". Values are NumPy arrays, Tensors (saved as arrays), bool, int, float,
        str, None, or lists and mappings of these. Arrays hold booleans, integers or real numbers of up to
        64 bits, bfloat16 included.

    Raises
    ------
    TypeError, ValueError
        If `state` holds anything else.
    CheckpointError
        If the file cannot be written; the previous one is untouched.
    """
    from safetensors.numpy import save as serialize

    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}; it must be a mapping, such as a state_dict")
    arrays: dict[str, np.ndarray] = {}
    tree = _take_arrays(state, (), arrays)
    entry = json.dumps({"version": FORMAT_VERSION, "sha256": _checksum(tree, arrays), "state": tree})
    try:
        atomic_write(path, serialize(arrays, metadata={"tinyvit": entry}))
    except OSError as error:
        raise CheckpointError(
            f"{os.fspath(path)} cannot be written ({error.strerror}) and is left as it was: "
            "check its folder, the permissions and the free space"
        ) from error


def _take_arrays(node: Any, keys: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    """Return `node` in its JSON form, and add its arrays to `arrays` by name."""
    name = "/".join(keys)
    if len(keys) > MAX_DEPTH - 10:  # with what surrounds it, `load` would refuse it
        raise ValueError(f"state is nested {len(keys)} times at {name!r}; {MAX_DEPTH - 10} are allowed")
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str) or "/" in key:
                raise ValueError(f'state has the key {key!r} in {name!r}; keys must be strings without "/"')
        return {key: _take_arrays(child, (*keys, key), arrays) for key, child in node.items()}
    if isinstance(node, list):
        return [_take_arrays(child, (*keys, str(index)), arrays) for index, child in enumerate(node)]
    if type(node) in _SCALARS:
        return node
    value = node.numpy() if hasattr(node, "numpy") else node
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.name not in _DTYPES:
        kind = f"an array of {value.dtype}" if hasattr(value, "dtype") else f"a {type(value).__name__}"
        raise TypeError(
            f"state[{name!r}] is {kind}; it must be an array of {', '.join(_DTYPES)}, "
            "a bool, int, float, str or None, or a list or mapping of these"
        )
    if name == "__metadata__":
        raise ValueError("state has the key '__metadata__', which the file format reserves")
    arrays[name] = np.asarray(value, order="C")  # safetensors ignores strides
    return {"/": name}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that `save` wrote; any other safetensors file gives a flat mapping of its arrays.

    Raises
    ------
    CheckpointError
        If the file is missing, unreadable, cut short, damaged, not a safetensors file, or of a newer format.
    """
    import ml_dtypes  # noqa: F401 (makes bfloat16 known to NumPy)
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    try:
        with open_file(path) as start:
            head = start.read(32)
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}): check the path") from error
    except (SafetensorError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} {_what_is_wrong(head)}") from error
    except (AttributeError, KeyError, TypeError) as error:  # safetensors looks up numpy.float8_e5m2, for example
        raise CheckpointError(
            f"{path} has arrays of a type that NumPy lacks ({error}): store them as float32"
        ) from error
    return _restore(path, metadata["tinyvit"], arrays) if "tinyvit" in metadata else arrays


def describe_foreign(path: str | os.PathLike[str]) -> str:
    """Describe the problem with a file that is no safetensors file, as the end of a message. Raises OSError."""
    with open_file(path) as file:
        return _what_is_wrong(file.read(32))


def _what_is_wrong(head: bytes) -> str:
    """Describe, from its first bytes, the problem with a file that safetensors refuses, and the way out."""
    if not head:
        return "is empty: restore it from a copy, or start again without it"
    if len(head) > 8 and head[8:9] != b"{":  # safetensors: 8 bytes of length, then a JSON header
        found = (what for magic, what in _FOREIGN if head.startswith(magic))
        return "is not a safetensors file but " + next(found, "something unknown: check the path")
    return "is cut short or damaged: restore it from a copy, or start again without it"


def _restore(path: str, entry: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rebuild the state that `save` was given from the JSON `entry` and the arrays it names."""
    try:
        content = parse_json(entry)
        if content["version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {content['version']}, written by a newer tinyvit; "
                f"this one reads up to {FORMAT_VERSION}: upgrade it with `pip install --upgrade tinyvit`"
            )
        tree = content["state"]
        if "sha256" in content and content["sha256"] != _checksum(tree, arrays):
            raise CheckpointError(
                f"{path} is damaged: its content does not have the checksum that it was written with; "
                "restore it from a copy, or start again without it"
            )
        return {key: _put_arrays(child, arrays) for key, child in tree.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has a damaged 'tinyvit' entry in its metadata ({type(error).__name__}: {error}): "
            "restore it from a copy, or start again without it"
        ) from error


def _checksum(tree: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over a state in its JSON form and over its arrays, with their names, dtypes and shapes."""
    found = hashlib.sha256(json.dumps(tree).encode())
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.byteorder == ">":  # it is stored little-endian
            array = array.astype(array.dtype.newbyteorder("<"))
        found.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def require_finite(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Raise CheckpointError if an array of the flat `state`, read from `path`, holds a value that is not finite."""
    for name, array in state.items():
        if isinstance(array, np.ndarray) and not (array.dtype.kind in "biu" or np.isfinite(array).all()):
            raise CheckpointError(
                f"{os.fspath(path)} holds values that are not finite in {name}: "
                "restore it from a copy, or start again without it"
            )


def _put_arrays(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(node, dict):
        if "/" in node:
            (name,) = node.values()
            return arrays[name]
        return {key: _put_arrays(child, arrays) for key, child in node.items()}
    if isinstance(node, list):
        return [_put_arrays(child, arrays) for child in node]
    return node
