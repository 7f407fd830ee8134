"""Specs build objects, and every mistake is explained."""

import json
from collections import UserDict
from types import MappingProxyType

import pytest

from vdm_jax.schedules import SCHEDULES
from vdm_jax.specs import build, choose, nearest


def circle(*, radius: float, colour: str = "red"):
    if radius < 0:
        raise ValueError(f"radius: expected a number above 0, found {radius}")
    return "circle", radius, colour


def square(*, side: float = 1.0):
    return "square", side


def frame(*, inside):
    return "frame", build(SHAPES, inside, "inside")


def broken():
    return json.loads("{")


SHAPES = {"circle": circle, "square": square, "frame": frame, "broken": broken}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("square", ("square", 1.0)),
        ({"name": "square"}, ("square", 1.0)),
        ({"name": "square", "side": 3}, ("square", 3)),
        (MappingProxyType({"name": "circle", "radius": 2}), ("circle", 2, "red")),
        (UserDict({"name": "circle", "radius": 2, "colour": "blue"}), ("circle", 2, "blue")),
        (
            {"name": "frame", "inside": {"name": "circle", "radius": 1}},
            ("frame", ("circle", 1, "red")),
        ),
    ],
)
def test_specs_build(spec, expected):
    assert build(SHAPES, spec) == expected


@pytest.mark.parametrize("built", [print, SCHEDULES["linear"]()])
def test_built_objects_pass_through(built):
    assert build(SHAPES, built, "model.shape", radius=5) is built


@pytest.mark.parametrize("nothing", [None, True, 3, 0.5, ["circle"], ("circle", 1)])
def test_other_types_are_refused(nothing):
    with pytest.raises(ValueError, match=r"^model.shape: expected a name or .*, found ") as error:
        build(SHAPES, nothing, "model.shape")
    assert repr(nothing) in str(error.value)


def test_a_spec_is_not_changed():
    spec = {"name": "circle", "radius": 1}
    build(SHAPES, spec, colour="green")
    assert spec == {"name": "circle", "radius": 1}


@pytest.mark.parametrize(
    ("spec", "shared", "expected"),
    [
        ("circle", {"radius": 4}, ("circle", 4, "red")),  # fills what is missing
        ({"name": "circle", "radius": 1}, {"radius": 4}, ("circle", 1, "red")),  # the spec wins
        ({"name": "circle", "radius": None}, {"radius": 4}, ("circle", 4, "red")),  # unless None
        ({"name": "circle", "radius": 0}, {"radius": 4}, ("circle", 0, "red")),  # 0 is a value
        ("square", {"radius": 4, "weight": 2}, ("square", 1.0)),  # dropped, since it is no argument
        ("square", {"side": None}, ("square", None)),
    ],
)
def test_shared_arguments(spec, shared, expected):
    assert build(SHAPES, spec, "model.shape", **shared) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "circel",
            "model.shape: unknown name 'circel'; did you mean 'circle'? "
            "choices: broken, circle, frame, square",
        ),
        ("zzz", "model.shape: unknown name 'zzz'; choices: broken, circle, frame, square"),
        ({"name": 3}, "model.shape: unknown name 3; choices: broken, circle, frame, square"),
        ({"name": None}, "model.shape: unknown name None; choices: broken, circle, frame, square"),
        (
            {"name": ["square"]},
            "model.shape: unknown name ['square']; did you mean 'square'? "
            "choices: broken, circle, frame, square",
        ),
        ({"radius": 1, "kind": 2}, "model.shape: expected a 'name', found only ['kind', 'radius']"),
        ({}, "model.shape: expected a 'name', found only []"),
        (
            {"name": "circle", "raduis": 1},
            "model.shape: 'circle' has no argument 'raduis'; did you mean 'radius'? "
            "choices: colour, radius",
        ),
        (
            {"name": "circle", "radius": 1, "qqq": 0},
            "model.shape: 'circle' has no argument 'qqq'; choices: colour, radius",
        ),
        ("circle", "model.shape: 'circle' needs radius"),
        (
            circle,
            "model.shape: expected the name 'circle' or what its factory returns, found the factory",
        ),
        (
            {"name": "circle", "radius": -1},
            "model.shape.radius: expected a number above 0, found -1",
        ),
    ],
)
def test_mistakes_are_explained(spec, message):
    """The message names the place, the value found, the expected values or choices, and the nearest name."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the whole message is compared
        build(SHAPES, spec, "model.shape")
    assert str(caught.value) == message


def test_mistakes_inside_a_spec_name_the_inner_place():
    spec = {"name": "frame", "inside": {"name": "frame", "inside": "circel"}}
    with pytest.raises(
        ValueError, match=r"^model\.inside\.inside: unknown name 'circel'; did you mean"
    ) as e:
        build(SHAPES, spec, "model")
    assert "\n" not in str(e.value)


def test_errors_of_a_factory_keep_their_kind_and_cause():
    with pytest.raises(TypeError, match=r"^here: .*not supported between"):
        build(SHAPES, {"name": "circle", "radius": "wide"}, "here")
    with pytest.raises(ValueError, match=r"^here\.radius: ") as caught:
        build(SHAPES, {"name": "circle", "radius": -2}, "here")
    assert isinstance(caught.value.__cause__, ValueError)


def test_errors_with_other_constructors_name_the_place():
    """A JSONDecodeError is a ValueError that cannot be constructed from a message alone."""
    with pytest.raises(ValueError, match=r"^here: Expecting property name"):
        build(SHAPES, "broken", "here")


def test_other_errors_pass_through():
    def fails():
        raise KeyError("inside")

    with pytest.raises(KeyError, match=r"^'inside'$"):
        build({"fails": fails}, "fails", "here")


def test_choose_and_nearest():
    assert choose({"a": 1}, "a", "here") == 1
    with pytest.raises(ValueError, match=r"^here: unknown name 'alphq'; did you mean 'alpha'\? "):
        choose({"alpha": 1, "beta": 2}, "alphq", "here")
    assert nearest("x", ["b", "a"]) == "; choices: a, b"
