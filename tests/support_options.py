"""What the tests of options share: the definition, densely in float64, with nothing of the library but `contains`."""

from __future__ import annotations

import math

import numpy as np

from subquad import Banded, Causal, Global, Random, Strided

# a tile, a list, both in two phases, residue classes, and edges that bits say
PATTERNS = {
    "tiles": Banded((20, 3)),
    "lists": Random(9, seed=2),
    "two phases": Banded(4) | Random(3, seed=1),
    "residues": Strided(7),
    "bits": (Causal() - Banded(2)) | Global((0, 11)),
}


def bend(score, b, h, i, j):
    """A score_mod: smooth, and different for every argument."""
    return 2.0 * math.tanh(score / 3.0) + 0.1 * h - 0.2 * b + 0.01 * (i - j)


def leave_out(b, h, i, j):
    """A mask_mod that leaves out a third of the pairs."""
    return (i + 2 * j + h + b) % 3 != 0


# for two batches of three heads, and 40 queries of 40 keys
OPTIONS = {
    "softcap": {"softcap": 1.5},
    "alibi_slopes": {"alibi_slopes": np.array([0.5, 0.125, 0.25])},
    "sinks": {"sinks": np.array([0.5, -1.0, -np.inf])},
    "key_lengths": {"key_lengths": np.array([31, 40])},
    "key_starts": {"key_starts": np.array([0, 13])},
    "q_offset": {"q_offset": np.array([-3, -9])},
    "score_mod": {"score_mod": bend},
    "mask_mod": {"mask_mod": leave_out},
    "dropout": {"dropout": 0.3, "seed": 11},
}


def splitmix(z):
    """The finaliser of splitmix64, in Python's integers."""
    whole = (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & whole
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & whole
    return z ^ (z >> 31)


def is_kept(seed, b, h, i, j, dropout):
    """The draw of one pair, as its description says."""
    golden, whole = 0x9E3779B97F4A7C15, (1 << 64) - 1
    of_batch = splitmix((splitmix((seed + golden) & whole) + (b + 1) * golden) & whole)
    of_head = splitmix((of_batch + (h + 1) * golden) & whole)
    row = splitmix((of_head + i * golden) & whole) >> 32
    key = splitmix((of_head ^ whole) + j * golden & whole) >> 32
    x = row * (key | 1) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x >= round(dropout * 2**32)


def allowed_pairs(pattern, n_q, n_k, offset):
    """The mask of queries that begin at position `offset`, from `contains` at sizes that align them so."""
    i, j = np.ogrid[:n_q, :n_k]
    if offset + n_q <= n_k:  # more queries, the first of which are these
        return pattern.contains(i, j, n_k - offset, n_k)
    virtual = offset + n_q  # more keys, the last of which are not there
    return pattern.contains(i, j, n_q, virtual)


def modified(score, b, h, i, j, offset, options):
    """One score, after all that is done to it."""
    if options.get("softcap"):
        score = options["softcap"] * math.tanh(score / options["softcap"])
    if options.get("alibi_slopes") is not None:
        score -= options["alibi_slopes"][h] * abs(i + offset - j)
    if options.get("score_mod"):
        score = options["score_mod"](score, b, h, i, j)
    return score


def oracle(query, key, value, pattern, scale=None, **options):
    """Output and lse of (batch, heads, n, d) arrays, pair by pair."""
    q, k, v = (np.asarray(x).astype(np.float64) for x in (query, key, value))
    (n_batches, n_heads, n_q, d), n_k = q.shape, k.shape[2]
    out, lse = np.zeros((n_batches, n_heads, n_q, v.shape[3])), np.full((n_batches, n_heads, n_q), -np.inf)
    offsets = np.broadcast_to(options.get("q_offset", n_k - n_q), n_batches)
    starts = np.broadcast_to(options.get("key_starts", 0), n_batches)
    lengths = np.broadcast_to(options.get("key_lengths", n_k), n_batches)
    for b, h, i in np.ndindex(n_batches, n_heads, n_q):
        if i == 0:
            mask = allowed_pairs(pattern, n_q, n_k, int(offsets[b]))
        keys = [j for j in np.flatnonzero(mask[i]) if starts[b] <= j < lengths[b]]
        if options.get("mask_mod"):
            keys = [j for j in keys if options["mask_mod"](b, h, i, j)]
        shared = b, h * k.shape[1] // n_heads
        plain = (d**-0.5 if scale is None else scale) * (k[shared][keys] @ q[b, h, i])
        scores = [modified(s, b, h, i, int(j), int(offsets[b]), options) for s, j in zip(plain, keys, strict=True)]
        sink = [] if options.get("sinks") is None else [options["sinks"][h]]
        finite = [s for s in (*scores, *sink) if s != -np.inf]
        if not finite:
            continue
        top = max(finite)
        total = sum(math.exp(s - top) for s in finite)
        lse[b, h, i] = top + math.log(total)
        for s, j in zip(scores, keys, strict=True):
            weight = math.exp(s - lse[b, h, i])
            if options.get("dropout"):
                dropout = options["dropout"]
                weight *= is_kept(options.get("seed", 0), b, h, i, int(j), dropout) / (1 - dropout)
            out[b, h, i] += weight * v[shared][j]
    return out, lse
