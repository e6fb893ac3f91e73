"""Patterns written as text: the same values as in Python, and nothing but patterns."""

from __future__ import annotations

import pytest

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Columns,
    Dense,
    Global,
    LogSparse,
    Neighborhood,
    Packed,
    Random,
    Strided,
    bigbird,
    longformer,
    patterns,
    sparse_transformer_fixed,
)
from subquad.expression import NAMES, parse_pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Dense()", Dense()),
        (" Banded(256) ", Banded(256)),
        ("Banded((8, None))", Banded((8, None))),
        ("Banded(window=(8, 0))", Banded((8, 0))),
        ("Random(64, seed=0)", Random(64, seed=0)),
        ("Banded(256) | Global(range(16))", Banded(256) | Global(range(16))),
        ("Global([0, 5], rows=False)", Global([0, 5], rows=False)),
        ("longformer(256, range(2, 16, 2))", longformer(256, range(2, 16, 2))),
        ("bigbird(64)", bigbird(64)),
        ("BlockSparse([[1, 0], [1, 1]], block=8)", BlockSparse([[1, 0], [1, 1]], block=8)),
        ("LogSparse() | Columns(64, width=8)", LogSparse() | Columns(64, 8)),
        ("Packed([3, 4]) & Causal()", Packed([3, 4]) & Causal()),
        (
            "Neighborhood((8, 8), 3, dilation=(1, 2), causal=[True, False])",
            Neighborhood((8, 8), 3, (1, 2), (True, False)),
        ),
        ("sparse_transformer_fixed(64, 2)", sparse_transformer_fixed(64, 2)),
        # Python's precedence: - before & before |.
        ("Causal() | Strided(3) & Banded(9) - Banded(1)", Causal() | Strided(3) & Banded(9) - Banded(1)),
        ("(Causal() | Strided(3)) & Banded(9)", (Causal() | Strided(3)) & Banded(9)),
    ],
)
def test_means_what_python_means(text, pattern):
    assert parse_pattern(text) == pattern


def test_every_pattern_and_preset_is_known():
    assert set(NAMES) == set(patterns.__all__) - {"Pattern"}


@pytest.mark.parametrize(
    ("text", "piece", "reason"),
    [
        ("", "''", "not an expression"),
        ("Banded(256", "Banded(256", "not an expression"),
        ("Bandd(256)", "'Bandd' at column 1", "did you mean Banded?"),
        ("Causal() | wat(3)", "'wat' at column 12", "unknown; known are Banded"),
        ("Causal", "'Causal' at column 1", r"needs its arguments: Causal(...)"),
        ("Pattern()", "'Pattern'", "unknown"),
        ("Banded(256) + Causal()", "'Banded(256) + Causal()'", "joined by |, & and -"),
        ("Causal() or Dense()", "'Causal() or Dense()'", "is no pattern"),
        ("256", "'256'", "is no pattern"),
        ("Causal() | Banded(-1)", "'Banded(-1)' at column 12", "window"),
        ("Strided(2.5)", "'Strided(2.5)'", "stride"),
        ("Random(4, sed=1)", "'Random(4, sed=1)'", "sed"),
        ("Random(4, **{})", "'{}'", "**"),
        ("Banded('x')", "\"'x'\"", "arguments are numbers"),
        ("Banded(n)", "'n'", "arguments are numbers"),
        ("Banded(2 * 3)", "'2 * 3'", "arguments are numbers"),
        ("Global(range(1, 9, 0))", "'range(1, 9, 0)'", "must not be zero"),
        ("Global(range(10**30))", "'10**30'", "arguments are numbers"),
        (f"Global(range({10**30}))", "Global(range(1000", "tokens"),
        ("Global(open('x'))", "\"open('x')\"", "arguments are numbers"),
        ("__import__('os').system('true')", "at column 1", "is no pattern"),
        ("Banded(1).nnz(2, 2)", "at column 1", "is no pattern"),
        ("(" * 5000 + "Causal()" + ")" * 5000, "(((", "not an expression"),
        ("|".join(["Causal()"] * 5000), "Causal", "not an expression"),
        ("Causal()\0", "Causal", "not an expression"),
    ],
)
def test_anything_else_is_refused_by_piece_and_reason(text, piece, reason):
    with pytest.raises(ValueError, match=r"^pattern ") as caught:
        parse_pattern(text)
    message = str(caught.value)
    assert piece in message
    assert reason in message
    assert "\n" not in message
