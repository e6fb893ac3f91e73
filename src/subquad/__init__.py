"""Sparse attention on the CPU: time and memory that follow the allowed pairs, never n x n.

>>> import numpy as np
>>> from subquad import Banded, Global, attention
>>> x = np.random.default_rng(0).standard_normal((4, 2000, 64), dtype=np.float32)
>>> attention(x, x, x, Banded(256) | Global(range(16))).shape
(4, 2000, 64)
"""

from typing import TYPE_CHECKING

from subquad import lazy
from subquad.attention import attention, attention_backward, merge
from subquad.patterns import Banded, Causal, Dense, Pattern

if TYPE_CHECKING:
    from subquad import reference, streamed, testing
    from subquad.advice import advise
    from subquad.decode import KVCache
    from subquad.multihead import MultiHeadAttention
    from subquad.pattern_files import load, save
    from subquad.patterns import (
        BlockSparse,
        Columns,
        Explicit,
        Global,
        LogSparse,
        Neighborhood,
        Packed,
        Random,
        Strided,
        bigbird,
        dilated,
        longformer,
        sparse_transformer_fixed,
        sparse_transformer_strided,
        streaming,
    )
    from subquad.scores import SparseScores, attention_scores, attention_weights

__version__ = "0.1.0"

__all__ = [
    "Banded",
    "BlockSparse",
    "Causal",
    "Columns",
    "Dense",
    "Explicit",
    "Global",
    "KVCache",
    "LogSparse",
    "MultiHeadAttention",
    "Neighborhood",
    "Packed",
    "Pattern",
    "Random",
    "SparseScores",
    "Strided",
    "advise",
    "attention",
    "attention_backward",
    "attention_scores",
    "attention_weights",
    "bigbird",
    "dilated",
    "load",
    "longformer",
    "merge",
    "reference",
    "save",
    "sparse_transformer_fixed",
    "sparse_transformer_strided",
    "streamed",
    "streaming",
    "testing",
]

_WHERE = {
    "advise": "advice",
    "KVCache": "decode",
    "MultiHeadAttention": "multihead",
    "SparseScores": "scores",
    "attention_scores": "scores",
    "attention_weights": "scores",
    "load": "pattern_files",
    "save": "pattern_files",
    "reference": "",
    "streamed": "",
    "testing": "",
}

__getattr__, __dir__ = lazy.names(__name__, dict.fromkeys(__all__, "patterns") | _WHERE)
