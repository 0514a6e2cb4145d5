"""Strategies as text: ``Anderson(memory=8)`` in a file or on a command line, and back."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

__all__ = ["build", "parse"]

T = TypeVar("T")


def build(
    name: str, classes: Mapping[str, type[T]], options: Mapping[str, Any], arguments: Sequence[Any] = (), *, what: str
) -> T:
    """Make the value that ``name`` stands for, upper or lower case.

    Raises:
        ValueError: If no class has that name, or an option has a value that it can't have.
        TypeError: If the class has no such option.
    """
    found = {key.lower(): cls for key, cls in classes.items()}.get(name.lower())
    if found is None:
        close = get_close_matches(name.lower(), [key.lower() for key in classes], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"no {what} is called {name!r}{hint} There are: {', '.join(sorted(map(str.lower, classes)))}")
    return found(*arguments, **options)


def parse(text: str, classes: Mapping[str, type[Any]], *, what: str) -> Any:
    """Read a value from its ``repr``, e.g. ``"Newton(linear=GMRES(restart=10))"``, or from its bare name.

    Nothing is evaluated: only names in ``classes``, keyword options, and literals are understood, and such values
    and tuples of them as arguments, ``"Fallback(Anderson(), Newton())"``.

    Raises:
        ValueError: If the text is not such an expression, or names something unknown.
        TypeError: If an option does not exist.
    """
    first = next(iter(classes))
    example = f"write a name, {first}, or a name with named options, {first}(option=value)"
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"can't read {what} {text!r}: {example}") from None

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return build(node.id, classes, {}, what=what)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            keywords = {k.arg: option(k.value) for k in node.keywords if k.arg is not None}
            if len(keywords) != len(node.keywords):
                raise ValueError(f"can't read {what} {text!r}: {example}")
            return build(node.func.id, classes, keywords, [argument(node) for node in node.args], what=what)
        raise ValueError(f"can't read {what} {text!r}: {example}")

    def argument(node: ast.expr) -> Any:
        return option(node) if isinstance(node, ast.Tuple) else value(node)

    def option(node: ast.expr) -> Any:
        if isinstance(node, (ast.Name, ast.Call)):
            return value(node)
        if isinstance(node, ast.Tuple):
            return tuple(map(option, node.elts))
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(f"can't read {what} {text!r}: {example}") from None

    return value(expression)
