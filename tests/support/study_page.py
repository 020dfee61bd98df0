"""For tests: a study page as its scripts read it, with its document, arrays, steps and their terms."""

import base64
import json
import re
import zlib
from functools import cache

import numpy as np

from tinyvit.study.page.write import page_of
from tinyvit.study.record.records import Recording
from tinyvit.study.subject import about, study_run

DTYPES = {"f4": "<f4", "f8": "<f8", "i4": "<i4", "u1": "u1"}


class Page:
    """A page as its scripts read it: the document, and arrays by number."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = re.search(r'<script type="application/json" id="trace">(.*?)</script>', text, re.DOTALL)
        assert found
        self.document = json.loads(found[1], parse_constant=_refused)
        self._blobs = {}
        for code in self.document["blobs"]:
            packed = re.search(rf'id="blob-{code}">(.*?)</script>', text)
            assert packed
            planes = np.frombuffer(zlib.decompress(base64.b64decode(packed[1])), np.uint8)
            width = np.dtype(DTYPES[code]).itemsize
            self._blobs[code] = np.ascontiguousarray(planes.reshape(width, -1).T).view(DTYPES[code]).ravel()

    def array(self, number: int) -> np.ndarray | None:
        code, offset, shape, *_ = self.document["arrays"][number]
        size = int(np.prod(shape))
        return None if offset is None else self._blobs[code][offset : offset + size].reshape(shape)

    def value(self, v: int) -> np.ndarray | None:
        return self.array(self.document["values"][v][1])

    def source(self, v: int) -> int:
        origin = self.document["values"][v][3]
        return self.source(origin[1]) if origin[0] == "same" else v


def _refused(constant: str) -> None:
    raise AssertionError(f"JSON has no {constant}")


@cache
def digits() -> tuple[Recording, Page]:
    subject = study_run()
    return subject.trace, Page(page_of(subject.trace, about(subject)))


def unfolded(page: Page, v: int) -> np.ndarray | None:
    """A value computed from its terms, all elements at once; None if the page does not unfold it."""
    kind, op, direction, k = page.document["values"][v][3]
    assert kind == "step"
    step = page.document["ops"][op]["steps"][direction][k]
    link, sign, axes, start, source = step["l"]
    arrays = [page.value(o["v"]).astype(np.float64) for o in step["o"] if "v" in o]
    shape = page.value(v).shape
    if link == "each":
        x = [page.value(o["v"]).astype(np.float64) if "v" in o else float(o["c"]) for o in step["o"]]
        signs = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "neg": np.negative, "where": np.where}
        return signs[sign](*x) if sign in signs else None
    if link == "matmul":
        return arrays[0] @ arrays[1]
    if link == "reduce":
        return getattr(np, sign)(arrays[0], axis=tuple(axes)).reshape(shape)
    flat = np.concatenate([a.ravel() for a in arrays]) if arrays else np.zeros(1)
    if link == "view":
        at = np.full(shape, start)
        for a, step_size in enumerate(axes):
            at += step_size * np.arange(shape[a]).reshape([-1 if i == a else 1 for i in range(len(shape))])
        return flat[at]
    if link == "move":
        at = page.array(source)
        return np.where(at < 0, page.value(v), flat[np.maximum(at, 0)])
    if link == "scatter":
        target = page.array(source).ravel()
        added = arrays[0].ravel()
        return np.bincount(target[target >= 0], added[target >= 0], minlength=int(np.prod(shape))).reshape(shape)
    return None


def holds(page: Page) -> dict[str, int]:
    """Compare every step of a page with its terms; return how many links of each kind there were."""
    kinds: dict[str, int] = {}
    for v, (_, _, _, origin) in enumerate(page.document["values"]):
        if origin[0] != "step":
            continue
        step = page.document["ops"][origin[1]]["steps"][origin[2]][origin[3]]
        result, recorded = unfolded(page, v), page.value(v)
        kinds[step["l"][0]] = kinds.get(step["l"][0], 0) + 1
        if result is not None:
            scale = np.abs(recorded[np.isfinite(recorded)]).max(initial=0)
            eps = 1e-5 if recorded.dtype == np.float32 else 1e-12
            np.testing.assert_allclose(recorded, result, rtol=eps, atol=eps * max(scale, 1e-30), err_msg=step["s"])
    return kinds
