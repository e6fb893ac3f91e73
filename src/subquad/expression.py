"""Patterns written as text, for the command line: ``Banded(256) | Global(range(16))``.

The text is parsed, never evaluated: names of patterns and presets, the operators ``|``, ``&`` and ``-``, and literal
arguments are all there is.
"""

import ast
import difflib
from collections.abc import Callable
from typing import Any

from subquad import patterns
from subquad.patterns import Pattern

#: What an expression may call: every pattern and preset there is.
NAMES = sorted(set(patterns.__all__) - {"Pattern"})

#: Of a text, a message quotes so many characters.
QUOTED = 120

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.BitOr: lambda a, b: a | b,
    ast.BitAnd: lambda a, b: a & b,
    ast.Sub: lambda a, b: a - b,
}


def parse_pattern(text: str) -> Pattern:
    """Build the pattern that a text describes.

    Parameters
    ----------
    text
        Calls of patterns and presets, joined by ``|``, ``&``, ``-`` and parentheses. Arguments are numbers, ``None``,
        ``True``, ``False``, tuples, lists and ``range(...)``, by position or by name.

    Raises
    ------
    ValueError
        Names the offending piece, its column and the way out; so does an argument that the pattern itself refuses.

    Examples
    --------
    >>> parse_pattern("Banded(256) | Global(range(16))").nnz(16, 16)
    256
    """
    text = text.strip()
    try:
        return _Builder(text).pattern(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError) as error:
        column = getattr(error, "offset", None)
        where = f" at column {column}" if column else ""
        raise ValueError(f"pattern {_short(text)!r}: not an expression{where}; write such as Banded(256)") from None


def _short(text: str) -> str:
    return text if len(text) <= QUOTED else text[:QUOTED] + "..."


class _Builder:
    """Walks the syntax tree of one text; keeps the text to quote the piece that is wrong."""

    def __init__(self, text: str) -> None:
        self.text = text

    def wrong(self, node: ast.expr, why: str) -> ValueError:
        piece = ast.get_source_segment(self.text, node)
        return ValueError(
            f"pattern {_short(self.text)!r}: {_short(piece or '')!r} at column {node.col_offset + 1}: {why}"
        )

    def pattern(self, node: ast.expr) -> Pattern:
        match node:
            case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
                combined: Pattern = _OPERATORS[type(operator)](self.pattern(left), self.pattern(right))
                return combined
            case ast.Call(ast.Name(name) as function):
                if name not in NAMES:
                    raise self.wrong(function, self.unknown(name))
                return self.call(node, getattr(patterns, name))
            case ast.Name(name) if name in NAMES:
                raise self.wrong(node, f"needs its arguments: {name}(...)")
            case ast.Name(name):
                raise self.wrong(node, self.unknown(name))
            case ast.BinOp():
                raise self.wrong(node, "patterns are joined by |, & and - alone")
            case _:
                raise self.wrong(node, "is no pattern; write one such as Banded(256)")

    def call(self, node: ast.Call, make: Callable[..., Pattern]) -> Pattern:
        args = [self.argument(arg) for arg in node.args]
        keywords = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.wrong(keyword.value, "** is not allowed here")
            keywords[keyword.arg] = self.argument(keyword.value)
        try:
            return make(*args, **keywords)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.wrong(node, str(error)) from error

    def argument(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(bool() | int() | float() | None as value):
                return value
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
                return -value
            case ast.Tuple(elements) | ast.List(elements):
                return tuple(self.argument(element) for element in elements)
            case ast.Call(ast.Name("range"), args, []):
                try:
                    return range(*(self.argument(arg) for arg in args))
                except (TypeError, ValueError) as error:
                    raise self.wrong(node, str(error)) from None
            case _:
                raise self.wrong(node, "arguments are numbers, None, True, False, tuples and range(...)")

    @staticmethod
    def unknown(name: str) -> str:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"unknown; {hint}known are {', '.join(NAMES)}"
