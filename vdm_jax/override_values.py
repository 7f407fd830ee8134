"""Values of overrides: numbers, booleans, text and lists, parsed from the command line."""

import ast
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_origin

from ml_collections import ConfigDict

from vdm_jax.config import default, leaves
from vdm_jax.settings import ROWS, to_plain

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list such as 1,2",
}
"""Types of fields -> their names in messages."""

BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Override(NamedTuple):
    """An override of a field from the command line.

    Attributes:
      path: dotted name of the field, without "config.".
      text: text of the value; None if the flag has no value.
      negated: True for --noconfig.<field>.
    """

    path: str
    text: str | None
    negated: bool = False

    @property
    def flag(self) -> str:
        """Flag as on the command line, without its value."""
        return f"--{'no' if self.negated else ''}config.{self.path}"


class Field(NamedTuple):
    """The type of a field.

    Attributes:
      kind: type of the value, tuple for a list; None for any literal.
      optional: True if the value may be None.
      element: type of the elements of a list; None for any literal.
    """

    kind: type | None
    optional: bool
    element: type | None = None


def default_of(parameter: inspect.Parameter | None) -> Any:
    """Return the default of an argument; None if there is no default or no argument."""
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def field_of(
    tree: ConfigDict, key: str, path: list[str], parameter: inspect.Parameter | None
) -> Field:
    """Return the type of the field config.<path>.

    Declared fields have the type of their declaration. Other fields have that of the first example, a value in
    the default config, in this config or in the signature, else that of the annotation or the placeholder.

    Args:
      tree: section that has the field.
      key: name of the field in the section.
      path: keys of the field in the config.
      parameter: argument of a component that the field sets, or None.
    """
    name = ".".join(path)
    if name in ROWS:
        row = ROWS[name]
        return Field(tuple if row.kind is list else row.kind, row.optional, row.element)
    types = _annotated_types(None if parameter is None else parameter.annotation)
    if types == [Any]:
        return Field(None, default_of(parameter) is None)
    value = tree.get(key)
    # fields of config.model are not those of the default config: they depend on the components
    defaults = {} if path[0] == "model" else dict(leaves(to_plain(default())))
    examples = [defaults.get(name), to_plain(value), to_plain(default_of(parameter))]
    kinds = [type(example) for example in examples if example is not None]
    # lists first: `Numbers` is also a single number
    kinds += [list for t in types if t is Sequence]
    kinds += [t for t in types if t in WORDS]
    if value is None and key in tree and tree.get_type(key) in WORDS:
        kinds.append(tree.get_type(key))  # of a placeholder
    optional = parameter is not None and parameter.default is None
    optional = optional or type(None) in types or (key in tree and value is None)
    if not kinds or kinds[0] not in {*WORDS, list}:
        return Field(None, optional)
    if kinds[0] is list:
        lists = [example for example in examples if isinstance(example, list)]
        elements = [type(element) for elements in lists for element in elements]
        # whole numbers are floats as well, in a list as in the line below
        element = float if float in elements else next(iter(elements), None)
        return Field(tuple, optional, element)
    return Field(float if kinds[0] is int and float in kinds else kinds[0], optional)


def _annotated_types(annotation: Any) -> list[Any]:
    """Return the types of an annotation X | Y | ..., without their arguments."""
    union = () if get_origin(annotation) is Sequence else get_args(annotation)
    return [get_origin(t) or t for t in union or [annotation]]


def parse_value(field: Field, override: Override) -> Any:
    """Parse the value of an override.

    Raises:
      ValueError: a value that the field cannot hold; one line, which begins with the flag.
    """
    text = override.text
    if field.kind is bool and text is None:
        return not override.negated
    expected = WORDS.get(field.kind or object, "a value") + (" or None" if field.optional else "")
    if override.negated:
        raise ValueError(f"{override.flag}: expected --config.{override.path}=<value>, {expected}")
    if text is None:
        raise ValueError(f"{override.flag}: expected =<value>, {expected}, found none")
    if text == "None" and field.optional:
        return None
    try:
        if field.kind is tuple:
            if field.element is object:
                return _specs(text)
            return tuple(_scalar(part, field.element) for part in _elements(text))
        return _scalar(text, field.kind)
    except ValueError:
        shown = text if text == "None" else repr(text if len(text) < 80 else f"{text[:77]}...")
        raise ValueError(f"{override.flag}: expected {expected}, found {shown}") from None


def _specs(text: str) -> tuple[Any, ...]:
    """Parse a list of names and of specs such as ('elbo', {'name': 'ode', 'steps': 32}).

    Raises:
      ValueError: an element that is neither.
    """
    value = literal(text)
    if isinstance(value, str):  # names without quotes
        value = _elements(text)
    elements = [value] if isinstance(value, dict) else value
    if not isinstance(elements, list | tuple):
        raise ValueError
    if not all(isinstance(element, str | dict) and element for element in elements):
        raise ValueError
    return tuple(elements)


def _elements(text: str) -> list[str]:
    """Split a list 1,2 or (1, 2) or ['a', 'b'] into the texts of its elements, without quotes."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1].strip()
    elements = [element.strip() for element in text.split(",")]
    if elements[-1] == "":  # an empty list, or a comma at the end
        elements.pop()
    return [_unquoted(element) for element in elements]


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _scalar(text: str, kind: type | None) -> Any:
    """Parse a number, a boolean or text; any literal if `kind` is None.

    Raises:
      ValueError: text that is not of this kind.
    """
    if kind is None:
        return literal(text)
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError
        return BOOLEANS[text.lower()]
    if kind is int:
        for base in (10, 0):  # base 0 reads prefixes such as 0x; it refuses leading zeros
            try:
                return int(text, base)
            except ValueError:
                continue
        number = float(text)  # such as 1e6
        if not number.is_integer() or abs(number) > 2**53:  # beyond, floats skip whole numbers
            raise ValueError
        return int(number)
    if kind is str and text in ("", "None"):
        raise ValueError
    return kind(text)


def literal(text: str) -> Any:
    """Parse a Python literal; return other text unchanged."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
