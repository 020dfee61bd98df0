"""Operations that pick elements by index: slices, integer arrays, masks, the rows of an embedding."""

import math
from typing import Any

import numpy as np

from ..backend import Array, Namespace, is_on_gpu, is_stand_in, to_host
from ..backend.checks import integer
from ..engine import Op, Tensor
from .arguments import as_operand, axis_index, refuse_arguments
from .constants import as_floating, constant
from .samples import sample
from .shape import reshape

_LARGEST = 2**26  # elements of the largest one-hot matrix that `_add_rows` may make


class BasicIndex(Op):
    """y = x[index] of slices and integers        dx = zeros with dx[index] = dy"""

    view = True

    @staticmethod
    def forward(xp, x, *, index):
        return x[index]

    def backward(ctx, xp, dy):
        return xp.index_add(dy, ctx.index, ctx.shapes[0])

    @staticmethod
    def samples():
        yield sample((4, 5), index=(slice(1, None, 2), 3))
        yield sample((2, 3, 4), index=(..., slice(None, None, -1), None))


class AdvancedIndex(Op):
    """y = x[index] with integer or boolean arrays        dx = zeros with dy added at index, as often as it repeats"""

    copies = ("index",)

    @staticmethod
    def forward(xp, x, *, index):
        return x[index]

    def backward(ctx, xp, dy):
        return xp.index_add(dy, ctx.index, ctx.shapes[0])

    @staticmethod
    def samples():
        yield sample((4, 5), index=(np.array([0, 2, 2, -1]),))
        yield sample((4, 5, 2), index=(slice(1, 3), np.array([[0, 0], [4, 1]])))
        yield sample((3, 4), index=(np.arange(12).reshape(3, 4) % 3 == 1,))


class IndexAdd(Op):
    """y = zeros of `shape` with x added at `index`        dx = dy[index]; the adjoint of indexing"""

    copies = ("index",)

    @staticmethod
    def forward(xp, x, *, index, shape):
        out = xp.zeros(shape, x.dtype)
        if _is_basic(index):
            out[index] = x  # slices never repeat an element
        elif not is_on_gpu(x):
            xp.add.at(out, index, x)
        elif len(index) == 1 and _are_integers(index) and index[0].size * shape[0] <= _LARGEST:
            rows = x.reshape(index[0].size, math.prod(shape[1:]))
            return _add_rows(xp, rows, index[0].reshape(-1), shape[0]).reshape(shape)
        elif x.size:
            return _add_sorted(xp, x, index, shape)
        return out

    def backward(ctx, xp, dy):
        return dy[ctx.index]

    @staticmethod
    def samples():
        yield sample((4, 3), index=(np.array([0, 2, 2, 1]),), shape=(5, 3))
        yield sample((2, 3), index=(slice(0, 4, 2),), shape=(4, 3))


def _add_rows(xp: Namespace, x: Array, rows: Array, count: int) -> Array:
    """Add x (..., R, C) to zeros (..., count, C) at `rows` (..., R), as a matrix product.

    Its order of summation is fixed. That of `add.at` on a GPU is not.
    """
    picked = (rows[..., None] % count == xp.arange(count)).astype(x.dtype)
    return xp.matmul(xp.swapaxes(picked, -1, -2), x)


def _add_sorted(xp: Namespace, x: Array, index: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    """Do the same for any index: sort the rows by destination, then add up each destination's rows in pairs."""
    axes = len(index) if _are_integers(index) else len(shape)
    count = math.prod(shape[:axes])
    places = xp.arange(count).reshape(shape[:axes])[index].reshape(-1)
    order = xp.argsort(places, kind="stable")
    places, rows = places[order], x.reshape(places.size, -1)[order]
    step = 1
    while step < places.size:  # makes each row the sum of up to 2 step rows of its destination, itself the last
        same = (places[step:] == places[:-step])[:, None]
        rows[step:] += xp.where(same, rows[:-step], 0.0)
        step *= 2
    is_last = xp.concatenate([places[1:] != places[:-1], xp.ones(1, bool)])
    out = xp.zeros((count + 1, rows.shape[1]), x.dtype)
    out[xp.where(is_last, places, count)] = rows  # the rest go to a dummy row
    return out[:-1].reshape(shape)


def _are_integers(index: tuple[Any, ...]) -> bool:
    """Whether an index is integer arrays alone, for the first axes."""
    return all(getattr(i, "dtype", np.dtype(bool)).kind in "iu" for i in index)


def _is_basic(index: Any) -> bool:
    return all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in index)


class IndexPut(Op):
    """y = x with y[index] = value        dx = dy with 0 at index,  dvalue = dy[index]"""

    copies = ("index",)

    @staticmethod
    def forward(xp, x, value, *, index):
        y = x.copy()
        y[index] = value
        return y

    def backward(ctx, xp, dy):
        dx = xp.index_put(dy, 0.0, ctx.index) if ctx.needs[0] else None
        dvalue = xp.sum_to_shape(dy[ctx.index], ctx.shapes[1]) if ctx.needs[1] else None
        return dx, dvalue

    @staticmethod
    def samples():
        yield sample((4, 3), (3,), index=(slice(0, 4, 2),))
        yield sample((4, 3), (2, 3), index=(np.array([3, 1]),))


class Embedding(Op):
    """y = weight[ids]        dweight = zeros, with dy added to the row of each id"""

    kernel = "embedding"
    copies = ("ids",)

    @staticmethod
    def forward(xp, weight, *, ids):
        return weight[ids]

    def backward(ctx, xp, dy):
        return xp.index_add(dy, (ctx.ids,), ctx.shapes[0])

    @staticmethod
    def samples():
        yield sample((5, 3), ids=np.array([[0, 4, 4], [1, 0, 2]]))


class TakeRows(Op):
    """y_b = x_b[rows_b] of each matrix x_b        dx_b = zeros, with dy_b added to the rows that were taken"""

    copies = ("rows",)

    @staticmethod
    def forward(xp, x, *, rows):
        return x[xp.arange(x.shape[0])[:, None], rows]

    def backward(ctx, xp, dy):
        return xp.add_rows(dy, ctx.rows, ctx.shapes[0][1])

    @staticmethod
    def samples():
        yield sample((2, 4, 3), rows=np.array([[3, 0, 2], [1, 1, 0]]))


class AddRows(Op):
    """y_b = zeros of `count` rows, with x_b added at rows_b        dx_b = dy_b[rows_b]; the adjoint of take_rows"""

    copies = ("rows",)

    @staticmethod
    def forward(xp, x, *, rows, count):
        if is_on_gpu(x):
            return _add_rows(xp, x, rows, count)
        y = xp.zeros((x.shape[0], count, x.shape[2]), x.dtype)
        xp.add.at(y, (xp.arange(x.shape[0])[:, None], rows), x)
        return y

    def backward(ctx, xp, dy):
        return xp.take_rows(dy, ctx.rows)

    @staticmethod
    def samples():
        yield sample((2, 3, 2), rows=np.array([[3, 0, 2], [1, 1, 0]]), count=4)


Namespace.extend("index_add", lambda xp, x, index, shape: IndexAdd.forward(xp, x, index=index, shape=shape))
Namespace.extend("index_put", lambda xp, x, value, index: IndexPut.forward(xp, x, value, index=index))


Namespace.extend("take_rows", lambda xp, x, rows: TakeRows.forward(xp, x, rows=rows))
Namespace.extend("add_rows", lambda xp, x, rows, count: AddRows.forward(xp, x, rows=rows, count=count))


def index(x: Tensor, key: Any) -> Tensor:
    """x[key] for slices, integers, None, ..., and integer or boolean arrays, which may repeat elements."""
    key = _key(key)
    if _is_basic(key):
        return BasicIndex.apply(x, index=key)
    ids = _numbers_of_rows(key, x)
    return AdvancedIndex.apply(x, index=key) if ids is None else Embedding.apply(x, ids=ids)


def _numbers_of_rows(key: tuple[Any, ...], x: Tensor) -> Any:
    """The ids of the rows of x that a key picks, if it is one array of those; None if not, or on a GPU."""
    ids = key[0]
    if len(key) > 1 or not _are_integers(key) or x.ndim < 2 or is_on_gpu(x.data) or is_on_gpu(ids) or is_stand_in(ids):
        return None
    return ids if ids.size and ids.min() >= 0 and ids.max() < x.shape[0] else None


def _key(key: Any) -> tuple[Any, ...]:
    return tuple(_index_part(i) for i in (key if isinstance(key, tuple) else (key,)))


def _index_part(i: Any) -> Any:
    if i is None or i is Ellipsis or isinstance(i, slice):
        return i
    if isinstance(i, (int, np.integer)) and not isinstance(i, bool):
        return int(i)
    array = constant(i, "index: the index")
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # an empty list
    if array.dtype.kind not in "iub":
        raise TypeError(f"index: an index is an integer, a slice, or an integer or boolean array, not {array.dtype}")
    return array


def take(x: Tensor, indices: Any, axis: int | None = None) -> Tensor:
    """The elements of x at `indices` (an integer array) along `axis`; of the flattened tensor by default."""
    x, numbers = x if isinstance(x, Tensor) else as_operand("take", "x", x), constant(indices, "take: indices")
    if axis is None:
        return index(reshape(x, -1), numbers)
    return index(x, (slice(None),) * axis_index("take", axis, x.ndim) + (numbers,))


def index_put(x: Tensor, value: Any, index: Any) -> Tensor:
    """x with x[index] = value; an index that repeats an element takes the last value.

    Raises ValueError if it repeats one and `value` requires a gradient: values that were overwritten have none.
    """
    if value is None or not isinstance(x, Tensor):
        refuse_arguments("index_put", TypeError("index_put: value is None"), {"x": x, "value": value})
    key = _key(index)
    if isinstance(value, Tensor) and value.requires_grad and _repeats(key, x.shape):
        raise ValueError("index_put: the index repeats an element of x, so the gradient of value is not defined")
    return IndexPut.apply(x, value, index=key)


def _repeats(key: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Whether an index picks an element of an array of this shape more than once."""
    if _is_basic(key):
        return False
    picked = np.arange(math.prod(shape)).reshape(shape)[tuple(to_host(i) for i in key)]
    return np.unique(picked).size < picked.size


def index_add(x: Tensor, index: tuple[Any, ...], shape: tuple[int, ...]) -> Tensor:
    """Zeros of `shape` to which x is added at `index`; integers give float32."""
    return IndexAdd.apply(as_floating(x), index=index, shape=shape)


def take_rows(x: Tensor, rows: Any) -> Tensor:
    """Of each matrix of x (B, N, C) the rows that the integers `rows` (B, M) name: (B, M, C)."""
    numbers = constant(rows, "take_rows: rows")
    if not isinstance(x, Tensor):
        refuse_arguments("take_rows", TypeError("take_rows: x"), {"x": x})
    if x.ndim != 3 or numbers.shape[:-1] != x.shape[:1] or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"take_rows: x has shape {x.shape} and rows {numbers.shape} of {numbers.dtype}; they must be (B, N, C) and "
            "integers (B, M)"
        )
    check_ids("take_rows: rows", numbers, x.shape[1])
    return TakeRows.apply(x, rows=numbers)


def add_rows(x: Tensor, rows: Any, count: int) -> Tensor:
    """Zeros (B, count, C) with row m of each matrix of x (B, M, C) added to row `rows[b, m]`; integers give float32."""
    if not isinstance(x, Tensor):
        refuse_arguments("add_rows", TypeError("add_rows: x"), {"x": x})
    return AddRows.apply(as_floating(x), rows=constant(rows, "add_rows: rows"), count=integer("add_rows: count", count))


def embedding(ids: Any, weight: Tensor) -> Tensor:
    """The rows of weight (V, C) that the integers `ids` (...) name: (..., C)."""
    values = constant(ids, "embedding: ids")
    if values.dtype.kind not in "iu":
        raise TypeError(f"embedding: ids have dtype {values.dtype}; they must be integers")
    try:
        if weight.ndim == 0:
            raise ValueError("embedding: weight has no axes; it must be (V, C)")
    except AttributeError as error:
        refuse_arguments("embedding", error, {"weight": weight})
    check_ids("embedding: ids", values, weight.shape[0])
    return Embedding.apply(weight, ids=values)


def check_ids(what: str, ids: Any, count: int, ignored: int | None = None) -> None:
    """Raise ValueError unless ids are in [0, count); those on a GPU are not looked at, which would wait for it.

    The id `ignored` is always allowed. Ids that stand for an input of a program are checked each time when it runs.
    """
    if is_stand_in(ids):
        ids.check_later(check_ids, what, ids, count, ignored)
        return
    if is_on_gpu(ids):
        return
    if ignored is not None:
        ids = ids[ids != ignored]
    if ids.size and not (ids.min() >= 0 and ids.max() < count):
        raise ValueError(f"{what} go from {ids.min()} to {ids.max()}; they must be in [0, {count})")
