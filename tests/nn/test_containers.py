"""Containers of modules and parameters behave as the lists and dictionaries of Python, whatever is done to them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvit import nn

LISTS = {"ModuleList": nn.ModuleList, "Sequential": nn.Sequential, "ParameterList": nn.ParameterList}
DICTS = {"ModuleDict": nn.ModuleDict, "ParameterDict": nn.ParameterDict}
PLACES = st.integers(-5, 5)
SLICES = st.builds(slice, st.none() | PLACES, st.none() | PLACES, st.sampled_from([None, 1, 2, -1]))
NUMBERS = ["0", "1", "2", "3", "5", "-1", "00"]


def new(kind: str) -> Any:
    return nn.Parameter(np.ones(2, np.float32)) if kind.startswith("Parameter") else nn.Linear(1, 1)


def outcome(call) -> Any:
    """The kind of error that a call raises, or what it returns."""
    try:
        return call()
    except (IndexError, ValueError, KeyError) as error:
        return type(error)


def same(found: Any, expected: list) -> bool:
    found = list(found)
    return len(found) == len(expected) and all(a is b for a, b in zip(found, expected, strict=True))


def set_item(container: Any, key: Any, value: Any) -> None:
    container[key] = value


def del_item(container: Any, key: Any) -> None:
    del container[key]


def attempt_on_list(data, kind: str, listed: Any, plain: list) -> None:
    """Do the same to a container and to a list, or do to the container what has no counterpart and must be refused."""
    value, several = new(kind), [new(kind) for _ in range(data.draw(st.integers(0, 3)))]
    place, part, name = data.draw(PLACES), data.draw(SLICES), data.draw(st.sampled_from([*NUMBERS, "extra"]))
    both = {
        "append": lambda x: x.append(value),
        "insert": lambda x: x.insert(place, value),
        "extend": lambda x: x.extend(iter(several)),
        "extend by itself": lambda x: x.extend(x if len(x) < 8 else []),
        "set": lambda x: set_item(x, place, value),
        "set a part": lambda x: set_item(x, part, several),
        "delete": lambda x: del_item(x, place),
        "delete a part": lambda x: del_item(x, part),
    }
    refused = {
        "set None": lambda: setattr(listed, name, None),
        "set a number": lambda: setattr(listed, name, 1.0),
        "set None as an item": lambda: set_item(listed, 0, None),
        "append None": lambda: listed.append(None),
        "delete the attribute": lambda: delattr(listed, name),
    }
    act = data.draw(st.sampled_from([*both, *refused, "set the attribute"]))
    if act in both:
        assert outcome(lambda: both[act](listed)) == outcome(lambda: both[act](plain)), act
    elif act == "set the attribute":
        if name in map(str, range(len(plain) + 1)):
            setattr(listed, name, value)
            plain[int(name) : int(name) + 1] = [value]
        else:
            with pytest.raises(TypeError, match="use append or insert"):
                setattr(listed, name, value)
    elif name in map(str, range(len(plain))):
        with pytest.raises(TypeError, match=r"del container\[\d\]|a NoneType is not a"):
            refused[act]()


@pytest.mark.parametrize("kind", LISTS)
@given(st.data())
@settings(max_examples=25)
def test_a_list_of_entries_behaves_as_a_list(kind, data) -> None:
    plain = [new(kind) for _ in range(data.draw(st.integers(0, 3)))]
    listed = LISTS[kind](*plain) if kind == "Sequential" else LISTS[kind](plain)
    for _ in range(data.draw(st.integers(1, 6))):
        attempt_on_list(data, kind, listed, plain)
        assert len(listed) == len(plain)
        assert same(listed, plain)
        assert all(listed[i] is plain[i] for i in range(-len(plain), len(plain)))
        names = [name for name in vars(listed) if name != "training"]
        assert names == [str(i) for i in range(len(plain))]
        weights = [entry if isinstance(entry, nn.Parameter) else entry.weight for entry in plain]
        assert {id(weight) for weight in weights} <= {id(parameter) for parameter in listed.parameters()}


@pytest.mark.parametrize("kind", DICTS)
@given(st.data())
@settings(max_examples=25)
def test_a_dictionary_of_entries_behaves_as_a_dictionary(kind, data) -> None:
    plain: dict[str, Any] = {name: new(kind) for name in data.draw(st.sets(st.sampled_from("abc")))}
    named = DICTS[kind](plain)
    for _ in range(data.draw(st.integers(1, 6))):
        name, value = data.draw(st.sampled_from("abcd")), new(kind)
        both = {
            "set": lambda x, name=name, value=value: set_item(x, name, value),
            "delete": lambda x, name=name: del_item(x, name),
        }
        act = data.draw(st.sampled_from([*both, "set the attribute", "delete the attribute", "set None"]))
        if act in both:
            assert outcome(partial(both[act], named)) == outcome(partial(both[act], plain))
        elif act == "set the attribute":
            setattr(named, name, value)
            plain[name] = value
        elif name in plain:
            if act == "set None":
                with pytest.raises(TypeError, match=rf"entry '{name}' is None; .* del container\['{name}'\]"):
                    setattr(named, name, None)
            else:
                delattr(named, name)
                del plain[name]
        assert (list(named), named.keys(), len(named)) == (list(plain), list(plain), len(plain))
        assert same(named.values(), list(plain.values()))
        assert [(n, id(v)) for n, v in named.items()] == [(n, id(v)) for n, v in plain.items()]
        assert all((n in named) == (n in plain) for n in "abcd")


@pytest.mark.parametrize("kind", DICTS)
@pytest.mark.parametrize("name", ["keys", "train", "a.b", ""])
def test_no_entry_hides_a_method_of_its_dictionary(kind, name) -> None:
    for attempt in (set_item, setattr):
        named = DICTS[kind]()
        with pytest.raises((KeyError, ValueError), match=r"choose another name|text without dots"):
            attempt(named, name, new(kind))
        assert list(named) == []
