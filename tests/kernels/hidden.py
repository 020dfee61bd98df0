"""Attention whose hidden keys hold NaN or infinity, and what it may give: what finite keys give, or NaN.

A key is hidden from a query by a boolean mask or by is_causal. Its weight is 0, and 0 times NaN is NaN, unless an
implementation leaves that product out. Compared are two runs of one implementation that differ in the special keys
alone, so what is not NaN must have the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import Case
from draws import Array, around
from hypothesis import strategies as st

SPECIAL = (np.nan, np.inf, -np.inf)


@dataclass(frozen=True)
class Hidden:
    """Two cases of attention: with special numbers in some keys, and with zeros in their place.

    Attributes
    ----------
    touched : (B, H, N), whether a query sees a special key.
    met : (B, H, S), whether a key is seen by such a query.
    must : (B, H, N, D), elements of the output that cannot be finite.
    only_k : whether no value is special.
    """

    special: Case
    clean: Case
    upstream: tuple[Array]
    touched: Array
    met: Array
    must: Array
    only_k: bool

    def check(self, run: Callable[[Case, tuple[Array]], list[Array]]) -> None:
        """Fail if `run`, which returns out, dq, dk and dv, gives anything but what zeros give, or NaN."""
        found, expected = run(self.special, self.upstream), run(self.clean, self.upstream)
        out = found[0].astype(float)
        assert not np.isfinite(out[self.must]).any(), "a special number that a query sees has no effect"
        if self.only_k:
            same = ~self.touched
            np.testing.assert_array_equal(out[same], expected[0].astype(float)[same], "a hidden key changes the output")
        exempt = (self.touched, self.touched, self.met, self.met)
        for name, y, e, spoilt in zip(("out", "dq", "dk", "dv"), found, expected, exempt, strict=True):
            y, e = y.astype(float), e.astype(float)
            assert np.isfinite(e).all(), name
            kept = ~spoilt[..., None] & ~np.isnan(y)
            np.testing.assert_array_equal(y[kept], e[kept], f"{name}: not NaN, and not what zeros give")


@st.composite
def hidden_keys(draw: Any, dtype: Any, edges: tuple[int, ...], depths: tuple[int, ...]) -> Hidden:
    """Draw attention with a mask, is_causal or both, and special numbers in some keys that a query does not see."""
    b, h = draw(st.sampled_from([(1, 1), (2, 2), (1, 3)]))
    sizes = st.sampled_from([n for n in around(*edges) if n])
    queries, keys = draw(sizes), draw(sizes)
    depth = draw(st.sampled_from(depths))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q, dout = rng.standard_normal((2, b, h, queries, depth)).astype(dtype)
    k, v = rng.standard_normal((2, b, h, keys, depth)).astype(dtype)
    how = draw(st.sampled_from(["padding", "causal", "mask", "mask and causal"]))
    chosen = rng.choice(keys, min(keys, draw(st.integers(1, 3))), replace=False)
    visible, params = np.ones((b, h, queries, keys), bool), {"scale": depth**-0.5, "is_causal": "causal" in how}
    if how == "padding":  # no query sees the special keys
        params["mask"] = np.ones((b, 1, 1, keys), bool)
        params["mask"][..., chosen] = False
    elif "mask" in how:
        params["mask"] = rng.random((b, 1, queries, keys)) < 0.7
    if "mask" in params:
        visible &= params["mask"]
    if "causal" in how:
        visible &= np.tri(queries, keys, dtype=bool)

    where = draw(st.sampled_from(["k", "v", "both"]))
    arrays = []
    for name, x in (("k", k), ("v", v)):
        x = x.copy()
        if where in (name, "both"):
            for s in chosen:
                columns = rng.choice(depth, draw(st.sampled_from([1, depth])), replace=False)
                x[rng.integers(b), rng.integers(h), s, columns] = draw(st.sampled_from(SPECIAL))
        arrays.append(x)
    is_special = [~np.isfinite(x.astype(float)) for x in arrays]
    zeros = [np.where(bad, np.zeros((), dtype), x) for bad, x in zip(is_special, (k, v), strict=True)]
    sees = visible & (is_special[0] | is_special[1]).any(-1)[:, :, None, :]
    nan_keys = np.isnan(arrays[0].astype(float)).any(-1)
    must = (visible & nan_keys[:, :, None, :]).any(-1)[..., None] | (visible.astype(int) @ is_special[1] > 0) & ~(
        visible & is_special[0].any(-1)[:, :, None, :]
    ).any(-1)[..., None]
    return Hidden(
        Case((q, *arrays, None), params),
        Case((q, *zeros, None), params),
        (dout,),
        touched=sees.any(-1),
        met=(visible & sees.any(-1)[..., None]).any(-2),
        must=must,
        only_k=where == "k",
    )
