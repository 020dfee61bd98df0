"""A program gives the bits of its model: for every model, batch size, choice of kernels, and from several threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import ROOT
from tiers import quick_first

import tinyvit as tv
from tinyvit import functional as F
from tinyvit.program.compiled import CompiledSteps
from tinyvit.program.layout import Buffer

M = tv.models
RNG = np.random.default_rng(0)


def images(batch: int, channels: int = 3, size: int = 16) -> np.ndarray:
    return RNG.standard_normal((batch, channels, size, size)).astype(np.float32)


def texts(batch: int, length: int) -> np.ndarray:
    ids = RNG.integers(3, 40, (batch, length))
    ids[batch // 2 :, length - 2 :] = 0
    return ids


def results(returned: Any) -> list[np.ndarray]:
    parts = returned if isinstance(returned, tuple) else (returned,)
    return [part.numpy() if isinstance(part, tv.Tensor) else part for part in parts]


def assert_same_bits(program: Any, model: Any, *inputs: Any) -> None:
    with tv.no_grad():
        wanted = results(model(*inputs))
    found = results(program(*inputs))
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


OPTIONS = st.fixed_dictionaries(
    {
        "image_size": st.sampled_from([8, 12]),
        "patch_size": st.sampled_from([2, 4]),
        "num_classes": st.sampled_from([0, 1, 7]),
        "heads": st.sampled_from([1, 2, 4]),
        "depth": st.integers(0, 2),
        "in_channels": st.sampled_from([1, 3]),
        "mlp_dim": st.sampled_from([None, 5, 33]),
        "pool": st.sampled_from(["cls", "mean", "first"]),
        "norm": st.sampled_from(["pre", "post"]),
        "pos_embed": st.sampled_from(["learned", "sincos1d", "sincos2d", "none"]),
        "qkv_bias": st.booleans(),
        "layer_scale": st.sampled_from([None, 0.5]),
        "register_tokens": st.sampled_from([0, 2]),
        "stem": st.sampled_from(["linear", "conv"]),
    }
)


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@settings(max_examples=12)
@given(options=OPTIONS, width=st.sampled_from([4, 8, 12]), batches=st.lists(st.integers(1, 5), min_size=1, max_size=2))
def test_programs_of_vits(kernels: str, options: dict[str, Any], width: int, batches: list[int]) -> None:
    with tv.use_kernels(kernels):
        model = M.ViT(**options, dim=width * options["heads"]).eval()
        shape = options["in_channels"], options["image_size"]
        program = tv.freeze(model, images(2, *shape))
        assert program.is_batch_free, program.graph.reason
        for batch in batches:
            assert_same_bits(program, model, images(batch, *shape))


@pytest.mark.parametrize("name", ["images", "texts"])
def test_programs_with_enough_work_for_several_threads(name: str) -> None:
    """Every kernel has so much work that threads share it."""
    model, inputs = {
        "images": (M.ViT(16, 2, 9, dim=32, depth=2, heads=2, layer_scale=0.5), lambda b: (images(b),)),
        "texts": (M.TextEncoder(40, 32, 1, 2), lambda b: (texts(b, 30),)),
    }[name]
    with tv.use_kernels("auto"):
        program = tv.freeze(model.eval(), *inputs(1))
        assert_same_bits(program, model, *inputs(33))


def vision(depth: int = 1) -> Any:
    return M.ViT(16, 8, 0, dim=16, depth=depth, heads=2, pool="first")


def reader() -> Any:
    return M.TextEncoder(40, 16, 1, 2)


MODELS: dict[str, Any] = {
    "text": lambda: (reader(), lambda b: (texts(b, 6),)),
    "towers": lambda: (M.TwoTowers(vision(), reader(), 16), lambda b: (images(b), texts(b, 5))),
    "translator": lambda: (M.EncoderDecoder(40, 16, 1, 2), lambda b: (texts(b, 6), texts(b, 4))),
    "captioner": lambda: (M.Captioner(vision(), M.TextDecoder(40, 16, 1, 2)), lambda b: (images(b), texts(b, 4))),
    "product": lambda: (M.VQA(vision(), reader(), M.ProductFusion(16), 16, 3), lambda b: (images(b), texts(b, 5))),
    "cross": lambda: (M.VQA(vision(), reader(), M.CrossFusion(16, 1, 2), 16, 3), lambda b: (images(b), texts(b, 5))),
    "joint": lambda: (M.VQA(vision(), reader(), M.JointFusion(16, 1, 2), 16, 3), lambda b: (images(b), texts(b, 5))),
    "convolutions": lambda: (
        M.VQA(M.ConvEncoder((16, 16), 3, 16), reader(), M.ProductFusion(16), 16, 3),
        lambda b: (images(b), texts(b, 5)),
    ),
    "shared images": lambda: (
        M.VQA(vision(), reader(), M.JointFusion(16, 1, 2), 16, 3),
        lambda b: (images(b), texts(b + 2, 5), np.arange(b + 2) % b),
    ),
    "video": lambda: (
        M.ViT((4, 8, 8), (2, 4, 4), 5, 16, 1, 2),
        lambda b: (RNG.standard_normal((b, 4, 3, 8, 8)).astype(np.float32),),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_programs_of_other_models(name: str) -> None:
    model, inputs = MODELS[name]()
    model.eval()
    with tv.use_kernels("auto"):
        program = tv.freeze(model, *inputs(2))
        assert program.is_batch_free, program.graph.reason
        for batch in (1, 3):
            assert_same_bits(program, model, *inputs(batch))


@pytest.mark.parametrize("kernels", quick_first(["numpy", "auto"]))
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes_run_plain_or_by_their_own_kernels(dtype: str, kernels: str) -> None:
    model = M.ViT(8, 4, 5, 16, 1, 2).eval()
    x = images(2, 3, 8)
    with tv.use_kernels(kernels):
        if dtype == "float64":
            model.to("float64")
            x = x.astype(np.float64)
            assert_same_bits(tv.freeze(model, x), model, x)
        else:
            with tv.autocast("bfloat16"):
                program = tv.freeze(model, x)
                assert_same_bits(program, model, x)
            found = program(x)  # also outside
            with tv.autocast("bfloat16"):
                np.testing.assert_array_equal(program(x), found)


def digits() -> Any:
    tv.manual_seed(0)
    return M.ViT(8, 2, 10, dim=32, depth=2, heads=2, in_channels=1).eval()


def test_several_threads_call_one_program() -> None:
    model, rows = digits(), images(60, 1, 8)
    batches = [rows[i : i + 1 + i % 4] for i in range(0, 56, 2)]
    with tv.use_kernels("auto"), tv.no_grad():
        program = tv.freeze(model, rows[:1])
        wanted = [model(x).numpy() for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for x, y in zip(pool.map(program, batches), wanted, strict=True):
                np.testing.assert_array_equal(x, y)


class Interrupted(tv.nn.Module):
    """A program of this calls `between` in the middle."""

    def __init__(self) -> None:
        self.linear, self.between = tv.nn.Linear(6, 6), lambda array: None

    def forward(self, x):
        y = self.linear(x)
        if hasattr(y.data, "check_later"):
            y.data.check_later(lambda array: self.between(array), y.data)
        return self.linear(F.gelu(y)) + y


def test_a_call_in_the_middle_of_another_works_in_memory_of_its_own() -> None:
    model, x = Interrupted().eval(), tv.Tensor(RNG.standard_normal((5, 6)).astype(np.float32))
    with tv.use_kernels("auto"):
        program = tv.freeze(model, x)
        wanted = program(x)
        others = [x * -1.0]

        def between(array: np.ndarray) -> None:
            if others:
                program(others.pop())

        model.between = between
        np.testing.assert_array_equal(program(x), wanted)
    assert not others


def test_inputs_of_any_memory_layout() -> None:
    model, x = digits(), images(6, 1, 8)
    with tv.use_kernels("auto"):
        program = tv.freeze(model, x)
        wanted = program(x)
        for other in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1][::-1]):
            np.testing.assert_array_equal(program(other), wanted)
        x.flags.writeable = False
        np.testing.assert_array_equal(program(x), wanted)
        np.testing.assert_array_equal(program(tv.Tensor(x)), wanted)


def test_results_are_not_overwritten_by_the_next_call() -> None:
    x = images(2, 1, 8)
    with tv.use_kernels("auto"):
        program = tv.freeze(digits(), x)
        first = program(x)
        kept = first.copy()
        program(x * 2)
    np.testing.assert_array_equal(first, kept)


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cross", "captioner", "convolutions"])
def test_buffers_that_are_needed_together_do_not_overlap(name: str) -> None:
    model, inputs = MODELS[name]()
    with tv.use_kernels("auto"):
        layout = tv.freeze(model.eval(), *inputs(2)).memory((2,))
    for i, one in enumerate(layout.buffers):
        assert one.offset + one.size <= layout.bytes
        for other in layout.buffers[:i]:
            if one.first <= other.last and other.first <= one.last:
                assert one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
    assert layout.bytes < sum(buffer.size for buffer in layout.buffers)


@pytest.mark.parametrize("name", ["digits", "cross", "captioner"])
def test_nothing_is_read_that_has_been_let_go(name: str) -> None:
    """Memory that nobody needs any more is filled with NaN after each step; the results are the same."""
    model, inputs = (digits(), lambda b: (images(b, 1, 8),)) if name == "digits" else MODELS[name]()
    given = inputs(2)
    with tv.use_kernels("auto"):
        program = tv.freeze(model.eval(), *given)
        wanted = results(program(*given))
        steps = program.plan((2,))
        assert isinstance(steps, CompiledSteps)
        final: list[np.ndarray] = []

        def after(i: int, memory: np.ndarray) -> None:
            needed = np.zeros(memory.size, bool)
            for buffer in steps.layout.buffers:
                if buffer.first <= i < buffer.last:
                    needed[buffer.offset : buffer.offset + buffer.size] = True
            memory[~needed] = 0xFF  # a NaN in every float, and ids and flags that are out of range
            if i == len(steps.graph.steps) - 1:
                final[:] = [steps.layout.spots[n].view(_root(steps, n, memory)).copy() for n in steps.graph.outputs]

        steps.run_in_turn(list(given), after)
    for x, y in zip(final, wanted, strict=True):
        np.testing.assert_array_equal(x, y)


def _root(steps: Any, number: int, memory: np.ndarray) -> np.ndarray:
    root = steps.layout.spots[number].root
    assert isinstance(root, Buffer)
    return memory[root.offset : root.offset + root.size]


def test_the_peak_is_stated_and_grows_with_the_batch() -> None:
    with tv.use_kernels("auto"):
        program = tv.freeze(digits(), images(1, 1, 8))
    widest = 17 * 128 * 4
    assert widest < program.peak_bytes < 3 * widest
    assert program.memory((8,)).bytes > 7 * program.peak_bytes


# How it runs ----------------------------------------------------------------------------------------------------------


def test_a_vit_is_one_compiled_call() -> None:
    with tv.use_kernels("auto"):
        program = tv.freeze(digits(), images(1, 1, 8))
    steps = program.plan((1,))
    assert len(steps.calls) == 1
    names = [step.name for step in steps.graph.steps]
    assert (names.count("linear_gelu"), names.count("add_layer_norm"), names.count("layer_norm")) == (2, 5, 0)


class Branching(tv.nn.Module):
    """Steps that may be joined in one way only, or not at all, because several others read their results."""

    def __init__(self) -> None:
        self.linear, self.norm, self.other = tv.nn.Linear(6, 6), tv.nn.LayerNorm(6), tv.nn.LayerNorm(6)

    def forward(self, x):
        y = self.linear(x)
        z = F.gelu(y) + y
        first = self.norm(z) * self.other(z)
        returned = self.linear(first)
        ends = self.norm(x[:, 0] + z[:, 0]), F.gelu(self.linear(z)), self.norm(x + 1.0), self.norm(x[:, :1] + x)
        return returned, F.gelu(returned), *ends


def test_steps_are_joined_only_where_nobody_else_needs_what_is_between() -> None:
    model = Branching().eval()
    inputs = [tv.Tensor(RNG.standard_normal((b, 3, 6)).astype(np.float32)) for b in (3, 1, 3)]
    with tv.use_kernels("auto"):
        program = tv.freeze(model, inputs[0])
        for x in inputs[:2]:
            assert_same_bits(program, model, x)
    assert [step.name for step in program.plan((3,)).graph.steps].count("linear_gelu") == 1


def test_programs_work_without_numba() -> None:
    code = """
import sys
sys.modules["numba"] = None
import numpy as np, tinyvit as tv
model = tv.models.ViT(8, 2, 10, dim=16, depth=1, heads=2, in_channels=1).eval()
x = np.ones((2, 1, 8, 8), np.float32)
with tv.no_grad():
    assert (tv.freeze(model, x)(x) == model(x).numpy()).all()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_readme_prints_the_program_of_the_digits() -> None:
    text = (ROOT / "tinyvit" / "program" / "README.md").read_text("utf-8")
    model = tv.models.ViT(8, 2, 10, dim=32, depth=1, heads=2, in_channels=1).eval()
    shown = str(tv.freeze(model, np.zeros((1, 1, 8, 8), np.float32)))
    assert "\n".join(f"    {line}" for line in shown.splitlines()) in text
