"""Real text as query, key and value: a seeded, training-free embedding of byte n-grams.

Random matrices would hide what sparse attention lives on: a text repeats itself, more often close by than far away.
Here each byte stands for the n-grams that end at it, so positions that share a context attend each other, as in the
content-based heads of a trained model, without a model to download.
"""

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

#: n-grams of one to four bytes: from single letters to short words.
NGRAM_LENGTHS = (1, 2, 3, 4)
#: Width of the embedding before it is projected to the heads.
FEATURES = 64
#: Rows of each n-gram table. The default text has about 24,000 distinct 4-grams: the frequent ones rarely share a row.
BUCKETS = 1 << 14
#: Scaled score of a position with one of the same context; see `embed`.
SAME_CONTEXT_SCORE = 8.0
#: Correlation of a head's query and key projections; see `embed`.
CORRELATION = 0.8

_FNV_PRIME = np.uint64(0x100000001B3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def read_text(path: str | Path | None = None, *, limit: int | None = None) -> bytes:
    """Read a text as bytes, whatever its encoding.

    Parameters
    ----------
    path
        The file; ``None`` for the language reference that ships inside CPython, `pydoc_data.topics` (466 kB in 3.11).
    limit
        Read at most so many bytes, ``None`` for all.

    Raises
    ------
    OSError
        The file is missing or unreadable.
    ValueError
        The file is empty.

    Examples
    --------
    >>> read_text(limit=12).isascii()
    True
    """
    if path is None:
        from pydoc_data.topics import topics  # half a megabyte of source: imported by who asks for it

        return "\n".join(topics.values()).encode()[:limit]
    with open(path, "rb") as file:
        text = file.read(-1 if limit is None else limit)
    if not text:
        raise ValueError(f"{path}: the text file is empty; give a file of at least one byte")
    return text


def embed(text: bytes, n: int, heads: int, d: int, seed: int = 0) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Turn the first `n` bytes of a text into query, key and value.

    Each position is the normalised sum of one random vector for each of the n-grams (1 to 4 bytes) that end there, the
    hash of the n-gram choosing the vector [1]_. Each head projects it at random to its query, key and value.

    *How peaked the softmax is.* A head's query and key projections have a correlation of 0.8: with independent ones a
    score has nothing to do with whether two contexts agree, and the mass that a pattern keeps is merely its share of
    the pairs. The scores are scaled so that, whatever `d`, a position meets one of the same context with 8. On the
    default text at n = 4,096, d = 64 the entropy of the median row is then that of about 280 equally attended keys,
    and its largest weight about 6%: neither uniform nor one-hot.

    *No position code*, on purpose: any locality in the result is that of the text, not one put in by hand.

    Parameters
    ----------
    text
        At least one byte. A text shorter than `n` is repeated.
    n, heads, d
        Rows, heads and width of a head, at least 1.
    seed
        Of the embedding and the projections.

    Returns
    -------
    query, key, value
        float32 arrays of shape (heads, n, d). Time and memory are O(n heads d).

    References
    ----------
    .. [1] Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009.

    Examples
    --------
    >>> query, key, value = embed(b"to be or not to be", n=18, heads=2, d=8)
    >>> query.shape, query.dtype
    ((2, 18, 8), dtype('float32'))
    """
    if not text:
        raise ValueError("text: must hold at least one byte, got none")
    for name, number in (("n", n), ("heads", heads), ("d", d)):
        if number < 1:
            raise ValueError(f"{name}: must be at least 1, got {number}")
    rng = np.random.default_rng(seed)
    features = _ngram_features(np.resize(np.frombuffer(text, np.uint8), n), rng)

    def projection() -> FloatArray:
        return rng.standard_normal((heads, FEATURES, d), dtype=np.float32)

    to_query = projection()
    to_key = np.float32(CORRELATION) * to_query + np.float32((1 - CORRELATION**2) ** 0.5) * projection()
    # For one context, E[query . key] = gain^2 CORRELATION d; attention then scales by d^-0.5.
    gain = np.float32((SAME_CONTEXT_SCORE / (CORRELATION * d**0.5)) ** 0.5)
    query, key, value = (np.matmul(features, matrix) for matrix in (gain * to_query, gain * to_key, projection()))
    return query, key, value


def _ngram_features(codes: npt.NDArray[np.uint8], rng: np.random.Generator) -> FloatArray:
    """Sum of one random vector for each n-gram that ends at each position, normalised: (n, FEATURES)."""
    features = np.zeros((codes.size, FEATURES), np.float32)
    hashes = np.zeros(codes.size, np.uint64)
    for length in NGRAM_LENGTHS:
        # Byte t - length + 1 joins the hash of the n-gram that ends at t; zeros stand before the text.
        earlier = np.zeros_like(hashes)
        earlier[length - 1 :] = codes[: max(codes.size - length + 1, 0)]
        hashes = (hashes * _FNV_PRIME) ^ earlier
        buckets = ((hashes * _GOLDEN) >> np.uint64(32)) % np.uint64(BUCKETS)
        table = rng.standard_normal((BUCKETS, FEATURES), dtype=np.float32)
        features += table[buckets.astype(np.intp)]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features
