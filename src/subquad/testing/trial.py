"""What checks are made of: claims, cases, and a trial that compares."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad.patterns.base import Pattern
from subquad.testing import oracle

Array = npt.NDArray[Any]
Dtype = np.dtype[Any]
Case = dict[str, Any]
OPTIONS = ("scale", "return_lse", "out", "num_threads")


class Mismatch(AssertionError):
    """An implementation gave something else than the contract says."""

    def __init__(self, message: str, difference: float | None = None, allowed: float | None = None) -> None:
        super().__init__(message)
        self.difference, self.allowed = difference, allowed


class Claims(NamedTuple):
    """The part of the contract that an implementation claims to keep, and how large the cases are."""

    patterns: tuple[Pattern, ...]
    dtypes: tuple[Dtype, ...]
    options: frozenset[str]
    size: int
    default: bool  # patterns: all of them

    @property
    def dtype(self) -> Dtype:
        """The first of those: where a check looks at one alone."""
        return self.dtypes[0]

    def fitting(self, n_q: int, n_k: int) -> tuple[Pattern, ...]:
        """The patterns that are legal at this size."""
        return _fitting(self.patterns, n_q, n_k)


@functools.lru_cache(maxsize=256)
def _fitting(patterns: tuple[Pattern, ...], n_q: int, n_k: int) -> tuple[Pattern, ...]:
    found = []
    for pattern in patterns:
        with contextlib.suppress(ValueError):
            pattern.contains(0, 0, n_q, n_k) if n_q and n_k else pattern.nnz(n_q, n_k)
            found.append(pattern)
    return tuple(found)


class Check(NamedTuple):
    """A named promise, and the cases that it is tried in."""

    name: str
    group: str
    sentence: str
    needs: frozenset[str]  # options, "backward", or a module
    cases: Callable[[Claims], Iterable[Case]]
    run: Callable[..., None]

    def missing(self, claims: Claims) -> str:
        """What stands in the way of running it."""
        for need in sorted(self.needs - claims.options):
            if need in OPTIONS or need == "backward":
                return f"{need} is not claimed"
            if importlib.util.find_spec(need) is None:
                return f"needs {need}"
        return ""


REGISTRY: dict[str, Check] = {}


def check(group: str, cases: Callable[[Claims], Iterable[Case]], *needs: str) -> Callable[[Any], Any]:
    """Register a function ``(trial, **case)`` as a check; its docstring is the promise."""

    def register(function: Any) -> Any:
        name = function.__name__.replace("_", "-")
        sentence = (function.__doc__ or "").strip().splitlines()[0]
        REGISTRY[name] = Check(name, group, sentence, frozenset(needs), cases, function)
        return function

    return register


class Trial:
    """One case: an implementation, numbers to try it on, and comparisons that raise Mismatch."""

    def __init__(self, attention: Callable[..., Any], backward: Callable[..., Any] | None, seed: list[int]) -> None:
        self._attention, self._backward = attention, backward
        self.rng = np.random.default_rng(seed)
        self.last: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def arrays(
        self,
        n_q: int,
        n_k: int,
        d: int = 16,
        d_v: int | None = None,
        leading: tuple[int, ...] = (),
        kv_leading: tuple[int, ...] | None = None,
        dtype: Any = np.float32,
    ) -> tuple[Array, Array, Array]:
        """Random query, key and value."""
        shared = leading if kv_leading is None else kv_leading
        shapes = (*leading, n_q, d), (*shared, n_k, d), (*shared, n_k, d if d_v is None else d_v)
        query, key, value = (self.normal(shape, dtype) for shape in shapes)
        return query, key, value

    def normal(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.rng.standard_normal(shape).astype(dtype)

    def raw(self, *arguments: Any, **options: Any) -> Any:
        """What the implementation answers, unlooked at."""
        self.last = arguments, options
        return self._attention(*arguments, **options)

    def out(self, *arguments: Any, **options: Any) -> Array:
        """Its output."""
        return _array(self.raw(*arguments, **options), "the output")

    def both(self, *arguments: Any, **options: Any) -> tuple[Array, Array]:
        """Its output and lse."""
        found = self.raw(*arguments, return_lse=True, **options)
        if not isinstance(found, tuple) or len(found) != 2:
            raise Mismatch(f"return_lse=True must give (out, lse); got {type(found).__name__}")
        return _array(found[0], "the output"), _array(found[1], "lse")

    def gradients(self, *arguments: Any, **options: Any) -> tuple[Array, ...]:
        """The three gradients, from the forward on."""
        *arrays, pattern = arguments
        out, lse = self.both(*arrays[1:], pattern, **options)
        return self.backward(*arrays, out, lse, pattern, **options)

    def backward(self, *arguments: Any, **options: Any) -> tuple[Array, ...]:
        """The three gradients that the backward gives."""
        assert self._backward is not None
        self.last = arguments, options
        found = self._backward(*arguments, **options)
        if not isinstance(found, tuple) or len(found) != 3:
            raise Mismatch(f"the backward must give three gradients; got {type(found).__name__}")
        return tuple(_array(x, f"the gradient of {name}") for x, name in zip(found, NAMES, strict=True))

    def near(self, what: str, found: Array, expected: Array, allowed: Any) -> None:
        """No element further off than `allowed`, a number or an array of them."""
        if found.shape != expected.shape:
            raise Mismatch(f"{what} has shape {found.shape}, not {expected.shape}")
        with np.errstate(invalid="ignore"):
            difference = np.abs(oracle.wide(found) - oracle.wide(expected))
        wrong = np.argwhere(~(difference <= allowed))  # a NaN is no less than anything
        if len(wrong):
            at = max(map(tuple, wrong), key=lambda index: np.nan_to_num(difference[index], nan=np.inf))
            limit = float(np.broadcast_to(allowed, difference.shape)[at])
            message = f"{what} is {found[at]} and not {expected[at]} at {tuple(map(int, at))}; {len(wrong)} are wrong"
            raise Mismatch(message, float(difference[at]), limit)

    def right(self, out: Array, arrays: Any, pattern: Pattern, scale: float | None = None) -> None:
        """The output lies within rounding of the oracle's."""
        query, key, value = arrays
        expected, lse = oracle.attention(query, key, value, pattern, scale)
        score, largest = oracle.largest_score(query, key, scale), float(np.abs(oracle.wide(value)).max(initial=0.0))
        n_k, d = key.shape[-2:]
        self.near("the output", out, expected, oracle.tolerance(query.dtype, n_k, d, score, largest))
        if out[lse == -np.inf].astype(bool).any():
            raise Mismatch("a row without keys is not 0")

    def right_lse(self, lse: Array, arrays: Any, pattern: Pattern, scale: float | None = None) -> None:
        """The lse lies within rounding of the oracle's; -inf where there is no key."""
        query, key, value = arrays
        _, expected = oracle.attention(query, key, value, pattern, scale)
        n_k, d = key.shape[-2:]
        score = oracle.largest_score(query, key, scale) + float(np.log(n_k + 1))
        empty = expected == -np.inf
        if lse.shape == expected.shape and not (lse[empty] == -np.inf).all():
            raise Mismatch("lse of a row without keys is not -inf")
        found, wanted = (np.where(empty, 0.0, x) if x.shape == empty.shape else x for x in (lse, expected))
        self.near("lse", found, wanted, oracle.tolerance(computed_in(query.dtype), n_k, d, score, 1.0))

    def same(self, what: str, found: Array, expected: Array) -> None:
        """The same shape, dtype and bits."""
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            shapes = f"{found.shape} {found.dtype}, not {expected.shape} {expected.dtype}"
            raise Mismatch(f"{what} has shape and dtype {shapes}")
        different = np.argwhere(_bits(found) != _bits(expected))
        if len(different):
            at = tuple(different[0])
            with np.errstate(invalid="ignore"):
                most = float(np.abs(oracle.wide(found) - oracle.wide(expected)).max())
            where = f"{len(different)} of {found.size} elements, first at {tuple(map(int, at))}"
            raise Mismatch(f"{what} has other bits: {where}: {found[at]} and not {expected[at]}", most, 0.0)

    def refused(self, what: str, call: Callable[[], Any], *names: str) -> None:
        """The call raises TypeError or ValueError, and the message has one of the names."""
        try:
            call()
        except (TypeError, ValueError) as error:
            if not any(name in str(error) for name in names):
                wanted = " or ".join(names)
                raise Mismatch(f"{what} is refused without naming {wanted}: {type(error).__name__}: {error}") from None
        except Exception as error:
            raise Mismatch(f"{what} ends in {type(error).__name__}, not TypeError or ValueError: {error}") from None
        else:
            raise Mismatch(f"{what} is not refused")


NAMES = ("query", "key", "value")


def computed_in(dtype: Dtype) -> Dtype:
    """What a dtype is computed in, and lse returned in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _array(x: Any, what: str) -> Array:
    if not isinstance(x, np.ndarray):
        raise Mismatch(f"{what} must be a NumPy array; got {type(x).__name__}")
    return x


def _bits(x: Array) -> Array:
    x = np.ascontiguousarray(x)
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))
