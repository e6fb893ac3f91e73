"""Patterns: which keys each query may attend."""

from typing import TYPE_CHECKING

from subquad import lazy
from subquad.patterns.bands import Banded, Causal, Dense
from subquad.patterns.base import Pattern

if TYPE_CHECKING:
    from subquad.patterns.blocks import BlockSparse
    from subquad.patterns.columns import Columns
    from subquad.patterns.explicit import Explicit
    from subquad.patterns.global_tokens import Global
    from subquad.patterns.log_sparse import LogSparse
    from subquad.patterns.neighborhood import Neighborhood
    from subquad.patterns.packed import Packed
    from subquad.patterns.presets import (
        bigbird,
        dilated,
        longformer,
        sparse_transformer_fixed,
        sparse_transformer_strided,
        streaming,
    )
    from subquad.patterns.random_keys import Random
    from subquad.patterns.strided import Strided

__all__ = [
    "Banded",
    "BlockSparse",
    "Causal",
    "Columns",
    "Dense",
    "Explicit",
    "Global",
    "LogSparse",
    "Neighborhood",
    "Packed",
    "Pattern",
    "Random",
    "Strided",
    "bigbird",
    "dilated",
    "longformer",
    "sparse_transformer_fixed",
    "sparse_transformer_strided",
    "streaming",
]

# Each family defines classes, which takes a millisecond each: so they wait until somebody asks for them.
_WHERE = {
    "BlockSparse": "blocks",
    "Columns": "columns",
    "Explicit": "explicit",
    "Global": "global_tokens",
    "LogSparse": "log_sparse",
    "Neighborhood": "neighborhood",
    "Packed": "packed",
    "bigbird": "presets",
    "dilated": "presets",
    "longformer": "presets",
    "sparse_transformer_fixed": "presets",
    "sparse_transformer_strided": "presets",
    "streaming": "presets",
    "Random": "random_keys",
    "Strided": "strided",
}

__getattr__, __dir__ = lazy.names(__name__, _WHERE)
