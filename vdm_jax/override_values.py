"""Values of overrides: text from the command line as a number, a truth value, text or a list."""

import ast
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_origin

from ml_collections import ConfigDict

from vdm_jax.config import default, leaves, to_plain
from vdm_jax.settings import ROWS

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list such as 1,2",
}

BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Override(NamedTuple):
    """One override.

    Attributes:
      path: the field's dotted name without "config.".
      text: the value; None if the flag has none.
      negated: True for --noconfig.<field>.
    """

    path: str
    text: str | None
    negated: bool = False

    @property
    def flag(self) -> str:
        return f"--{'no' if self.negated else ''}config.{self.path}"


class Field(NamedTuple):
    """The type of a field; `kind` None is any literal, `element` the type of a list's elements."""

    kind: type | None
    optional: bool
    element: type | None = None


def default_of(parameter: inspect.Parameter | None) -> Any:
    """Return the default of an argument, None if it has none."""
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def field_of(
    tree: ConfigDict, key: str, path: list[str], parameter: inspect.Parameter | None
) -> Field:
    """Return what the field config.<path>, `key` of `tree`, may hold.

    Args:
      parameter: of the component that the field is an argument of, or None.
    """
    name = ".".join(path)
    if name in ROWS:
        row = ROWS[name]
        return Field(tuple if row.kind is list else row.kind, row.optional, row.element)
    annotation = None if parameter is None else parameter.annotation
    types = get_args(annotation) if get_origin(annotation) is not Sequence else ()
    types = [get_origin(t) or t for t in types or [annotation]]
    value = tree.get(key)
    # in config.model a field's type depends on the components
    known = {} if path[0] == "model" else dict(leaves(to_plain(default())))
    examples = [known.get(name), to_plain(value), to_plain(default_of(parameter))]
    kinds = [type(e) for e in examples if e is not None]
    kinds += [t for t in types if t in WORDS]
    kinds += [list for t in types if t is Sequence]
    if value is None and key in tree:
        kinds += [t for t in [tree.get_type(key)] if t in WORDS]  # of a placeholder
    optional = parameter is not None and parameter.default is None
    optional = optional or type(None) in types or (key in tree and value is None)
    if not kinds or not {*kinds[:1]} & {*WORDS, list}:
        return Field(None, optional)
    if kinds[0] is list:
        elements = [
            type(e) for example in examples if isinstance(example, list | tuple) for e in example
        ]
        return Field(tuple, optional, float if float in elements else next(iter(elements), None))
    return Field(float if kinds[0] is int and float in kinds else kinds[0], optional)


def parse_value(field: Field, override: Override) -> Any:
    """Read the value of an override.

    Raises:
      ValueError: the field cannot hold it; one line, which begins with the flag.
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
            return tuple(_scalar(part, field.element) for part in _elements(text))
        return _scalar(text, field.kind)
    except ValueError:
        shown = text if text == "None" else repr(text if len(text) < 80 else f"{text[:77]}...")
        raise ValueError(f"{override.flag}: expected {expected}, found {shown}") from None


def _elements(text: str) -> list[str]:
    """The elements of a list: 1,2 or (1, 2) or ['a', 'b']; nothing if it is empty."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1].strip()
    parts = [part.strip() for part in text.split(",")]
    parts = parts[:-1] if parts[-1] == "" else parts
    return [p[1:-1] if len(p) > 1 and p[0] == p[-1] and p[0] in "\"'" else p for p in parts]


def _scalar(text: str, kind: type | None) -> Any:
    """Read a number, a truth value or text.

    Raises:
      ValueError: it is none of that kind.
    """
    if kind is None:
        return literal(text)
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError
        return BOOLEANS[text.lower()]
    if kind is int:
        for base in (10, 0):  # 0: 0x10
            try:
                return int(text, base)
            except ValueError:
                continue
        number = float(text)  # 1e6
        if not number.is_integer() or abs(number) > 2**53:
            raise ValueError
        return int(number)
    if kind is str and text in ("", "None"):
        raise ValueError
    return kind(text)


def literal(text: str) -> Any:
    """Read a Python literal; anything else is text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
