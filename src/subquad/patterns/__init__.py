"""Patterns: which keys each query may attend."""

from subquad.patterns.bands import Banded, Causal, Dense
from subquad.patterns.base import Pattern
from subquad.patterns.blocks import BlockSparse
from subquad.patterns.global_tokens import Global
from subquad.patterns.presets import bigbird, dilated, longformer, streaming
from subquad.patterns.random_keys import Random
from subquad.patterns.strided import Strided

__all__ = [
    "Banded",
    "BlockSparse",
    "Causal",
    "Dense",
    "Global",
    "Pattern",
    "Random",
    "Strided",
    "bigbird",
    "dilated",
    "longformer",
    "streaming",
]
