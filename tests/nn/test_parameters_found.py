"""No parameter vanishes: whatever is assigned to its name, and wherever it is put, it is found or an error says why."""

import copy
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyvit as tv
import tinyvit.functional as F
from tinyvit import nn


def parameter(size: int = 2) -> nn.Parameter:
    return nn.Parameter(np.ones(size, np.float32))


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


# Assignment -----------------------------------------------------------------------------------------------------------

OTHERS: dict[str, Any] = {
    "tensor": lambda: tv.tensor(np.ones((2, 3), np.float32)),
    "trained tensor": lambda: tv.tensor(np.ones((2, 3), np.float32), requires_grad=True),
    "result": lambda: F.softmax(nn.Parameter(np.ones((2, 3), np.float32))),
    "array": lambda: np.ones((2, 3), np.float32),
    "list": lambda: [[1.0, 2.0]],
    "number": lambda: 1.0,
    "text": lambda: "weight",
    "module": lambda: nn.Linear(1, 1),
    "function": lambda: abs,
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_parameter_is_not_lost_by_assignment(other) -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight
    with pytest.raises(TypeError, match=r"Linear\.weight is a Parameter and would be lost .*\.weight\.assign\(array\)"):
        layer.weight = OTHERS[other]()
    assert layer.weight is before
    assert names(layer) == ["weight", "bias"]


@pytest.mark.parametrize("other", [other for other in OTHERS if other != "module"])
def test_a_module_is_not_lost_by_assignment(other) -> None:
    model = nn.Mlp(4)
    with pytest.raises(TypeError, match=r"Mlp\.fc1 is a module and would be lost"):
        model.fc1 = OTHERS[other]()
    assert "fc1.weight" in names(model)


def test_a_parameter_may_be_replaced_or_removed() -> None:
    layer = nn.Linear(3, 2)
    layer.weight = other = nn.Parameter(np.zeros((2, 3), np.float32))
    layer.bias = None
    assert list(layer.parameters()) == [other]
    layer.bias = parameter()
    assert names(layer) == ["weight", "bias"]
    model = nn.Mlp(4)
    model.drop = None
    model.drop = nn.Identity()
    assert isinstance(model.drop, nn.Identity)


def test_a_tensor_that_would_not_be_trained_is_refused_and_a_constant_is_kept() -> None:
    module = nn.Module()
    with pytest.raises(
        TypeError, match=r"Module\.scale: a tensor that requires a gradient is neither trained nor saved"
    ):
        module.scale = tv.tensor([1.0], requires_grad=True)
    module.scale = tv.tensor([1.0])
    module.last = F.exp(tv.tensor([1.0], requires_grad=True))  # kept to look at
    assert names(module) == []


@pytest.mark.parametrize("make", [parameter, nn.GELU])
def test_an_attribute_of_the_class_is_refused(make) -> None:
    with pytest.raises(TypeError, match=r"Shared\.part is a .* of the class, which is not found; set it in __init__"):
        type("Shared", (nn.Module,), {"part": make()})


# Containers -----------------------------------------------------------------------------------------------------------

WRAPPERS: dict[str, Any] = {
    "list": lambda x: [x],
    "tuple": lambda x: (1, x),
    "dict": lambda x: {"a": 0, "b": x},
    "set": lambda x: {x},
    "deque": lambda x: deque([x]),
}
QUESTIONS: dict[str, Any] = {
    "parameters": lambda m: list(m.parameters()),
    "named_parameters": lambda m: list(m.named_parameters()),
    "modules": lambda m: list(m.modules()),
    "state_dict": lambda m: m.state_dict(),
    "load_state_dict": lambda m: m.load_state_dict({}),
    "train": lambda m: m.train(),
    "eval": lambda m: m.eval(),
    "to": lambda m: m.to("float64"),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "optimizer": lambda m: tv.optim.AdamW(m.parameters()),
    "repr": repr,
}


@given(st.lists(st.sampled_from(sorted(WRAPPERS)), min_size=1, max_size=4), st.sampled_from([nn.GELU, parameter]))
def test_what_lies_in_plain_containers_is_refused_at_any_depth(kinds, make) -> None:
    value = make()
    for kind in kinds:
        try:
            value = WRAPPERS[kind](value)
        except TypeError:  # a list in a set
            value = [value]
    module = nn.Module()
    with pytest.raises(
        TypeError, match=r"Module\.parts: (modules|parameters) in a plain \w+ are not found, such as parts\["
    ):
        module.parts = value
    assert not hasattr(module, "parts")


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("make", [nn.GELU, parameter])
def test_what_is_added_to_a_container_later_is_refused_when_it_is_looked_for(make, question) -> None:
    for fill in (list.append, lambda parts, x: parts.append({"deep": [x]})):
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].parts = []
        QUESTIONS["parameters"](model)
        fill(model[0].parts, make())
        with pytest.raises(TypeError, match=r"Linear\.parts: .*ModuleList for modules, tv\.nn\.ParameterList"):
            QUESTIONS[question](model)


def test_containers_without_modules_are_left_alone() -> None:
    module = nn.Module()
    module.sizes, module.words, module.maps = [1, 2], {"a": (1, 2)}, [np.ones(3), tv.tensor([1.0])]
    module.sizes.append(module.sizes)  # a list may contain itself
    assert names(module) == []


def test_containers_of_modules_and_parameters_are_found() -> None:
    module = nn.Module()
    module.layers = nn.ModuleList([nn.Linear(2, 2)])
    module.heads = nn.ModuleDict({"small": nn.Linear(2, 1, bias=False)})
    module.scales = nn.ParameterList([parameter(), np.zeros(3, np.float32)])
    module.bases = nn.ParameterDict({"a": parameter()})
    module.layers.append(nn.Linear(2, 3))
    module.heads["large"] = nn.Sequential(nn.Linear(2, 9))
    module.scales.append(parameter(1))
    module.bases["b"] = parameter(4)
    expected = (
        *("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "heads.small.weight"),
        *("heads.large.0.weight", "heads.large.0.bias", "scales.0", "scales.1", "scales.2", "bases.a", "bases.b"),
    )
    assert names(module) == list(expected)
    assert list(module.heads) == ["small", "large"]
    assert [p.size for p in module.scales] == [2, 3, 1]
    assert {name: p.size for name, p in module.bases.items()} == {"a": 2, "b": 4}
    assert all(p.requires_grad for p in module.scales)
    other = copy.deepcopy(module)
    assert other.load_state_dict({name: array + 1 for name, array in module.state_dict().items()}) == ([], [])
    np.testing.assert_array_equal(other.scales[1].numpy(), 1)
    module.to("float64").eval()
    assert {p.dtype for p in module.parameters()} == {np.dtype(np.float64)}
    assert not module.heads["large"][0].training
    module.layers[1], module.scales[0] = nn.Linear(2, 5), parameter(7)
    assert (module.layers[1].weight.shape, module.scales[0].size, len(module.layers)) == ((5, 2), 7, 2)
    del module.heads["small"], module.bases["a"]
    assert (list(module.heads), list(module.bases), "small" in module.heads) == (["large"], ["b"], False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.ModuleList([parameter()]), TypeError, "Parameter is not a module; use tv.nn.ParameterList"),
        (lambda: nn.ModuleList([None]), TypeError, "NoneType is not a module"),
        (lambda: nn.Sequential(abs), TypeError, "is not a module"),
        (lambda: nn.ModuleDict({"a": parameter()}), TypeError, "use tv.nn.ParameterDict"),
        (lambda: nn.ModuleDict({"a.b": nn.GELU()}), ValueError, r"'a\.b' must be a text without dots"),
        (lambda: nn.ModuleDict({1: nn.GELU()}), TypeError, "the name 1 must be a text"),
        (lambda: nn.ModuleDict({"train": nn.GELU()}), KeyError, "'train' is an attribute"),
        (lambda: nn.ParameterDict({"items": parameter()}), KeyError, "'items' is an attribute"),
        (lambda: nn.ParameterList([F.exp(parameter())]), TypeError, "the result of an operation is no parameter"),
        (lambda: nn.ParameterList([np.arange(3)]), TypeError, "floating"),
        (lambda: nn.ParameterList([nn.GELU()]), TypeError, "GELU"),
    ],
)
def test_what_does_not_belong_into_a_container_is_refused(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


# Loading --------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_loading_says_what_did_not_fit(data) -> None:
    model = nn.Mlp(2, 3)
    state = {name: array + 1 for name, array in model.state_dict().items()}
    missing = data.draw(st.sets(st.sampled_from(sorted(state))))
    extra = data.draw(st.sets(st.sampled_from(["head.weight", "module.fc1.bias", "steps"])))
    before = model.state_dict()
    given_state = {n: a for n, a in state.items() if n not in missing} | dict.fromkeys(extra, np.zeros(1))
    if len(missing) == len(state):
        with pytest.raises(KeyError, match="no name fits: missing names"):
            model.load_state_dict(given_state, strict=False)
        return
    result = model.load_state_dict(given_state, strict=False)
    assert (result.missing, result.unexpected) == (sorted(missing), sorted(extra))
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name] + (name not in missing))
    if missing or extra:
        with pytest.raises(KeyError, match="missing names"):
            model.load_state_dict(given_state)


@pytest.mark.parametrize("state", ["model.safetensors", nn.GELU(), [1], None, {1, 2}, np.zeros(3)])
def test_a_state_that_is_no_mapping_is_refused(state) -> None:
    with pytest.raises(TypeError, match=r"load_state_dict: state is a \w+; give a mapping of names to arrays"):
        nn.Linear(1, 1).load_state_dict(state)
