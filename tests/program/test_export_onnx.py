"""An ONNX file computes what the program does: for every kind of model, any batch, and with 8-bit weights."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import MODELS, arrays, difference, images
from peers import peer

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.data import load_dataset, normalize
from tinyvit.program import ExportError
from tinyvit.program.onnx_short import shorten
from tinyvit.run.folder import load_run

ALLOWED = 1e-5  # of the largest output


def outputs_of(path: Path, inputs: Any) -> list[np.ndarray]:
    runtime = peer("onnxruntime")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    onnx = peer("onnx")
    model, inputs = MODELS[name]()
    model.eval()
    program, path = tv.freeze(model, *inputs(2)), tmp_path / "model.onnx"
    program.export_onnx(path, *inputs(4))
    for batch in (1, 5):
        with tv.no_grad():
            wanted = arrays(model(*inputs(batch)))
        for x, y in zip(wanted, outputs_of(path, inputs(batch)), strict=True):
            assert x.shape == y.shape
            assert difference(x, y) <= ALLOWED
    graph = onnx.load(path)
    assert [opset.version for opset in graph.opset_import] == [17]
    assert {x.type.tensor_type.shape.dim[0].dim_param for x in graph.graph.input} == {"B"}
    norms = sum(step.name == "layer_norm" for step in program.operations)
    assert Counter(node.op_type for node in graph.graph.node)["LayerNormalization"] == norms


def test_operations_without_a_form_of_their_own_are_written_by_their_rules(tmp_path: Path) -> None:
    def function(x: Any) -> Any:
        y = F.silu(x).var(axis=-1, keepdims=True) + F.logsumexp(x, axis=1, keepdims=True) * F.clip(x, -0.5, 0.5)
        y = F.where(x.data > 0, y, F.sigmoid(x)) ** 2 + F.gelu(x, approximate="tanh")
        first, second = F.split(F.flip(y, axis=-1), 2, axis=-1)
        return F.log_softmax(F.pad(F.stack([first, second], axis=1), ((0, 0), (1, 0), (0, 0), (0, 2))), axis=-1)

    x = images(3, 5, 4)[:, :, 0]
    path = tmp_path / "function.onnx"
    program = tv.freeze(function, tv.tensor(x))
    peer("onnx")
    program.export_onnx(path)
    assert difference(program(x), outputs_of(path, [x])[0]) <= ALLOWED


def test_the_digits_in_float_and_in_8_bits(tmp_path: Path) -> None:
    peer("onnx"), peer("onnxruntime")
    trained, data = load_run("digits"), load_dataset("digits", "test")
    x = normalize(data.images, data.mean, data.std)
    program = tv.freeze(trained.model, x[:1])
    logits = program(x)
    facts = {"classes": ["null", "eins"], "note": "a text"}
    whole = program.export_onnx(tmp_path / "float.onnx", x, names=["logits"], metadata=facts)
    assert (whole.rows, whole.agreement) == (359, 1.0)
    assert whole.difference <= ALLOWED
    small = program.export_onnx(tmp_path / "int8.onnx", x, int8=True)
    (y,) = outputs_of(small.path, [x])
    lost = (logits.argmax(1) == data.labels).mean() - (y.argmax(1) == data.labels).mean()
    assert lost <= 0.001
    assert small.size <= 0.3 * whole.size
    (onnx,) = [peer("onnx").load(whole.path)]
    assert [x.name for x in onnx.graph.output] == ["logits"]
    stored = {entry.key: entry.value for entry in onnx.metadata_props}
    assert (json.loads(stored["classes"]), stored["note"]) == (facts["classes"], "a text")


@pytest.mark.parametrize("zero", [0, 3])
def test_a_shortened_file_computes_the_same(zero: int) -> None:
    onnx, runtime = peer("onnx"), peer("onnxruntime")
    make, rng = onnx.helper, np.random.default_rng(0)
    weight = rng.integers(0, 200, (6, 4)).astype(np.uint8)
    arrays_ = {"a.long.name": weight, "zero of x": np.array(5, np.uint8), "zero of w": np.full(4, zero, np.uint8)}
    product = make.make_node("MatMulInteger", ["a", "a.long.name", "zero of x", "zero of w"], ["inner"], name="first")
    last = make.make_node("Cast", ["inner"], ["c"], name="second", to=onnx.TensorProto.FLOAT)
    ends = [make.make_tensor_value_info(n, k, ["B", m]) for n, k, m in (("a", onnx.TensorProto.UINT8, 6), ("c", 1, 4))]
    stored = [onnx.numpy_helper.from_array(x, name) for name, x in arrays_.items()]
    graph = make.make_graph([product, last], "graph", ends[:1], ends[1:], stored)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    x = rng.integers(0, 255, (3, 6)).astype(np.uint8)

    def run() -> np.ndarray:
        onnx.checker.check_model(model, full_check=True)
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(["c"], {"a": x})[0]

    before, size = run(), model.ByteSize()
    shorten(onnx, model)
    np.testing.assert_array_equal(before, run())
    assert model.ByteSize() < size
    assert len(model.graph.initializer) == (2 if zero == 0 else 3)


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: Any) -> None:
    from tinyvit.program.onnx_operations import OnnxOperations

    peer("onnx"), peer("onnxruntime")
    monkeypatch.setattr(OnnxOperations, "gelu", lambda self, x, approximate: x)
    model, inputs = MODELS["class token"]()
    with pytest.raises(ExportError, match=r"model.onnx is not written: its outputs would differ"):
        tv.freeze(model.eval(), *inputs(1)).export_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_onnx_has_no_form_for_is_named(tmp_path: Path) -> None:
    peer("onnx"), peer("onnxruntime")
    program = tv.freeze(lambda x: F.cumsum(x, axis=-1), tv.tensor(images(2)))
    with pytest.raises(ExportError, match="the model calls cumsum, which has no form in ONNX yet"):
        program.export_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    program = tv.freeze(F.relu, tv.tensor(images(2)))
    with pytest.raises(ExportError, match=r"needs onnx .*pip install 'tinyvit\[onnx\]'"):
        program.export_onnx(tmp_path / "model.onnx")
