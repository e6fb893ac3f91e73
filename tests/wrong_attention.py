"""Dense attention that is right, and wrong in a dozen ways: each change of one thing.

Plain NumPy, the contract word by word, so that a change shows in the check that is meant for it and hardly elsewhere.
"""

from __future__ import annotations

import contextlib

import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")


class DenseAttention:
    """What the contract says, an n x n matrix at a time; subclasses get one thing wrong."""

    def __call__(self, query, key, value, pattern, *, scale=None, return_lse=False, out=None, num_threads=None):
        self.check(query, key, value, scale, out, num_threads)
        shape = (*query.shape[:-1], value.shape[-1])
        result, lse = np.zeros(shape), np.full(shape[:-1], -np.inf)
        mask = self.mask(pattern, query.shape[-2], key.shape[-2])
        group = query.shape[-3] // max(1, key.shape[-3]) if query.ndim > 2 else 1
        for head in np.ndindex(query.shape[:-2]):
            shared = (*head[:-1], self.key_head(head[-1], group, key)) if head else ()
            arrays = (np.array(x, np.float64, order="C") for x in (query[head], key[shared], value[shared]))
            result[head], lse[head] = self.rows(*arrays, mask, self.factor(scale, query.shape[-1]), head, num_threads)
        found = self.converted(result, query.dtype)
        if out is not None:
            out[...] = found
            found = out
        return (found, lse.astype(np.float64 if query.dtype == np.float64 else np.float32)) if return_lse else found

    def check(self, query, key, value, scale, out, num_threads):
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.ndim < 2 or x.dtype.name not in FLOATS:
                raise TypeError(f"{name} must be an array of floats; got {x.dtype} {x.shape}")
            if x.dtype != query.dtype:
                raise TypeError(f"inputs must have one dtype; got {x.dtype} for {name}")
            if out is not None and np.may_share_memory(out, x):
                raise ValueError(f"out overlaps {name}")
        if key.shape[-1] != query.shape[-1] or value.shape[:-1] != key.shape[:-1]:
            raise ValueError(f"key and value must fit query; got key {key.shape}")
        if query.ndim > 2 and query.shape[-3] % max(1, key.shape[-3]):
            raise ValueError("heads of query must be a multiple of those of key")
        if scale is not None and (isinstance(scale, str) or not np.isfinite(scale)):
            raise ValueError(f"scale must be finite; got {scale}")
        if num_threads is not None and (num_threads != int(num_threads) or num_threads < 1):
            raise ValueError(f"num_threads must be positive; got {num_threads}")
        if out is not None and (not isinstance(out, np.ndarray) or out.shape != (*query.shape[:-1], value.shape[-1])):
            raise TypeError(f"out must be an array of the result's shape; got {type(out)}")

    def mask(self, pattern, n_q, n_k):
        i, j = np.arange(n_q)[:, None], np.arange(n_k)[None]
        return np.broadcast_to(pattern.contains(i, j, n_q, n_k), (n_q, n_k))

    def key_head(self, head, group, key):
        return head // group

    def factor(self, scale, d):
        return d**-0.5 if scale is None else scale

    def converted(self, result, dtype):
        with np.errstate(all="ignore"):
            return result.astype(dtype)

    def rows(self, q, k, v, mask, factor, head, num_threads):
        """A row at a time, over its own keys alone."""
        out, lse = np.zeros((len(q), v.shape[1])), np.full(len(q), -np.inf)
        with np.errstate(all="ignore"):
            for i in range(len(q)):
                keys = self.keys(mask, i)
                if len(keys):
                    out[i], lse[i] = self.row(q[i], k[keys], v[keys], factor)
                else:
                    out[i], lse[i] = self.nothing()
        return out, lse

    def keys(self, mask, i):
        return np.nonzero(mask[i])[0]

    def nothing(self):
        return 0.0, -np.inf

    def row(self, q, k, v, factor):
        scores = np.einsum("jd,d->j", k, q) * factor
        top = scores.max()
        weights = np.exp(scores - top)
        total = weights.sum()
        return np.einsum("j,jd->d", weights / total, v), top + self.log(total)

    log = staticmethod(np.log)


class TopLeft(DenseAttention):
    def mask(self, pattern, n_q, n_k):
        larger = max(n_q, n_k)
        with contextlib.suppress(ValueError):  # the corner of the square, as if query 0 stood at position 0
            return super().mask(pattern, larger, larger)[:n_q, :n_k]
        return super().mask(pattern, n_q, n_k)


class BaseTwo(DenseAttention):
    def row(self, q, k, v, factor):
        out, lse = super().row(q, k, v, factor)
        return out, lse / np.log(2.0)


class NoScale(DenseAttention):
    def factor(self, scale, d):
        return d**-0.5


class UnscaledByDefault(DenseAttention):
    def factor(self, scale, d):
        return 1.0 if scale is None else scale


class NanWithoutKeys(DenseAttention):
    def nothing(self):
        return np.nan, -np.inf


class MeanWithoutKeys(DenseAttention):
    """What a mask of large negative numbers gives: the average of all values."""

    def rows(self, q, k, v, mask, factor, head, num_threads):
        out, lse = super().rows(q, k, v, mask, factor, head, num_threads)
        if len(v):
            out[~mask.any(axis=1)] = np.nan_to_num(v.mean(axis=0))
        return out, lse


class ZeroLseWithoutKeys(DenseAttention):
    def nothing(self):
        return 0.0, 0.0


class Leaks(DenseAttention):
    """Masked weights are 0, and 0 times NaN is not."""

    def rows(self, q, k, v, mask, factor, head, num_threads):
        out, lse = super().rows(q, k, v, mask, factor, head, num_threads)
        return out + 0 * v.sum(axis=0), lse


class HidesNan(DenseAttention):
    def row(self, q, k, v, factor):
        out, lse = super().row(q, k, v, factor)
        return np.nan_to_num(out), lse


class WritesItsInput(DenseAttention):
    def __call__(self, query, key, value, pattern, **options):
        result = super().__call__(query, key, value, pattern, **options)
        if query.flags.writeable and query.size:
            query *= options.get("scale") or query.shape[-1] ** -0.5
        return result


class DependsOnBatch(DenseAttention):
    def rows(self, q, k, v, mask, factor, head, num_threads):
        out, lse = super().rows(q, k, v, mask, factor, head, num_threads)
        return out * (1 + 4e-16 * len(head) * sum(head)), lse


class DependsOnThreads(DenseAttention):
    def rows(self, q, k, v, mask, factor, head, num_threads):
        out, lse = super().rows(q, k, v, mask, factor, head, num_threads)
        return out * (1 + 4e-16 * ((num_threads or 1) > 1)), lse


class DependsOnTheRun(DenseAttention):
    calls = 0

    def rows(self, q, k, v, mask, factor, head, num_threads):
        self.calls += 1
        out, lse = super().rows(q, k, v, mask, factor, head, num_threads)
        return out * (1 + 4e-16 * (self.calls % 50 == 49)), lse


class DependsOnOtherRows(DenseAttention):
    def rows(self, q, k, v, mask, factor, head, num_threads):
        out, lse = super().rows(q, k, v, mask, factor, head, num_threads)
        return out * (1 + 4e-16 * (len(q) > 20)), lse


class InterleavedGroups(DenseAttention):
    def key_head(self, head, group, key):
        return head % key.shape[-3]


class SinglePrecision(DenseAttention):
    def converted(self, result, dtype):
        return result.astype(np.float32)


class TouchesOut(DenseAttention):
    def __call__(self, query, key, value, pattern, *, out=None, **options):
        if isinstance(out, np.ndarray):
            out[...] = 0
        return super().__call__(query, key, value, pattern, out=out, **options)


class WritesBesideOut(DenseAttention):
    def __call__(self, query, key, value, pattern, *, out=None, **options):
        result = super().__call__(query, key, value, pattern, out=out, **options)
        if out is not None and out.base is not None and out.ndim == 3:
            out.base.reshape(-1)[0] = 0
        return result


class IgnoresOut(DenseAttention):
    def __call__(self, query, key, value, pattern, *, out=None, **options):
        self.check(query, key, value, options.get("scale"), out, options.get("num_threads"))
        return super().__call__(query, key, value, pattern, **options)


class AnyWidths(DenseAttention):
    """Takes d_v for d."""

    def factor(self, scale, d):
        return super().factor(scale, 16) if d > 60 else super().factor(scale, d)


class NoMaximum(DenseAttention):
    def row(self, q, k, v, factor):
        weights = np.exp(np.einsum("jd,d->j", k, q) * factor)
        return np.einsum("j,jd->d", weights / weights.sum(), v), np.log(weights.sum())


class ForgetsTheRescale(DenseAttention):
    """An online softmax in two halves that adds the second to the first as they stand."""

    def row(self, q, k, v, factor):
        scores = np.einsum("jd,d->j", k, q) * factor
        half = len(scores) // 2
        tops = [scores[part].max(initial=-1e300) for part in (slice(half), slice(half, None))]
        same = abs(tops[1] - tops[0]) < 3 or not half
        base = np.where(np.arange(len(scores)) < half, tops[0], tops[1]) if not same else scores.max()
        weights = np.exp(scores - base)
        return np.einsum("j,jd->d", weights / weights.sum(), v), scores.max() + np.log(weights.sum())


class SkipsTheLastKey(DenseAttention):
    def keys(self, mask, i):
        keys = np.nonzero(mask[i])[0]
        return keys[:-1] if len(keys) > 1 and keys[-1] % 16 == 9 else keys


class KeepsItsResult(DenseAttention):
    def __init__(self):
        self.kept = {}

    def __call__(self, query, key, value, pattern, *, return_lse=False, out=None, **options):
        name = query.tobytes(), key.tobytes(), value.tobytes(), query.shape, key.shape, pattern, options.get("scale")
        found = super().__call__(query, key, value, pattern, return_lse=return_lse, out=out, **options)
        return (
            found if return_lse or out is not None or query.dtype.itemsize == 2 else self.kept.setdefault(name, found)
        )


class AcceptsAnything(DenseAttention):
    def check(self, query, key, value, scale, out, num_threads):
        """No rule at all: what comes of it comes from below."""


# what is wrong, and the checks that must say so
WRONG = {
    TopLeft: {"alignment"},
    BaseTwo: {"lse"},
    NoScale: {"scale"},
    UnscaledByDefault: {"scale", "dense-oracle"},
    NanWithoutKeys: {"rows-without-keys"},
    MeanWithoutKeys: {"rows-without-keys"},
    ZeroLseWithoutKeys: {"lse-without-keys"},
    Leaks: {"nan-outside"},
    HidesNan: {"nan-inside"},
    WritesItsInput: {"inputs-unwritten"},
    DependsOnBatch: {"head-alone", "permuted"},
    DependsOnThreads: {"threads"},
    DependsOnTheRun: {"repeats"},
    DependsOnOtherRows: {"row-alone"},
    InterleavedGroups: {"grouped-heads"},
    SinglePrecision: {"result-dtype"},
    TouchesOut: {"out-untouched"},
    WritesBesideOut: {"out-receives"},
    IgnoresOut: {"out-receives"},
    AnyWidths: {"widths"},
    NoMaximum: {"large-scores"},
    ForgetsTheRescale: {"late-maximum"},
    SkipsTheLastKey: {"dense-oracle"},
    KeepsItsResult: {"results-are-the-callers"},
    AcceptsAnything: {"bad-inputs", "bad-options", "out-overlapping"},
}
