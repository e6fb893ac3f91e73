"""Decoding: keys and values that arrive a few at a time, of which only what the pattern can still reach is held."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.decode.chunks import Rows
from subquad.decode.options import StepOptions, checked_table
from subquad.decode.reach import Reach
from subquad.decode.slots import Sizes, Slots
from subquad.decode.steps import Call, checked_dtype, compute_dtype
from subquad.inputs import Array, checked_pattern, checked_scale
from subquad.patterns.base import Pattern
from subquad.threads import thread_count

_AT_ONCE = 64 << 20  # bytes: a ring up to this size is allocated whole, so that its size never changes
_FEWEST = 64  # slots of a ring of which only time tells how large it must be


class KVCache:
    """Keys and values of a sequence that grows, holding no more of them than its pattern can still reach.

    ``cache.attend(query)`` is ``attention(query, all keys so far, all values so far, pattern)``: the m rows of `query`
    stand at the last m positions. Bands are held in a ring, global tokens, sinks and columns are pinned, and where a
    pattern may reach any key, all are held. Rows of a causal pattern come out the same token by token, in chunks and in
    one call.

    Parameters
    ----------
    pattern : Pattern
        Which keys each query may attend. One that was made for one size (`Packed`, `Neighborhood`, `BlockSparse`,
        `Explicit`) is that of the finished sequence: a query at position p has its row p, as far as keys have come.
    heads : int
        Heads of keys and values; a batch counts as more heads. Queries may have a multiple of it.
    d, d_v : int
        Columns of keys and of values; `d_v` is `d` by default.
    dtype : str or dtype, optional
        float32, float64, float16 or bfloat16: of what is held, and of all that comes in and goes out. Half precision is
        computed in float32.
    max_rewind : int, optional
        How many tokens `rewind` can drop at least, counted from the longest that the sequence has been. Their room is
        held in addition to the window.
    capacity : int, optional
        The most tokens the sequence may have; without a bound by default, or the size of the pattern.

    Raises
    ------
    TypeError, ValueError, MemoryError
        For what does not fit.

    Notes
    -----
    Memory: heads x (d + d_v) elements for each token that is held. With a window and pinned tokens those are window +
    max_rewind + pinned, whatever the length; `Columns` adds its own, n width / stride; `Causal`, `Strided`, `LogSparse`
    and `Random` need all n, unless a window cuts them off. A ring without a bound doubles when it is full.

    Several threads may `attend` at once, but not while another changes the cache.

    References
    ----------
    Pope et al., "Efficiently Scaling Transformer Inference" (2022), section 3.3; Xiao et al., "Efficient Streaming
    Language Models with Attention Sinks" (2023), for sinks and a window.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import KVCache, streaming
    >>> cache = KVCache(streaming(4, 256), heads=2, d=64)
    >>> x = np.random.default_rng(0).standard_normal((2, 1000, 64), dtype=np.float32)
    >>> for t in range(1000):
    ...     cache.append(x[:, t : t + 1], x[:, t : t + 1])
    ...     out = cache.attend(x[:, t : t + 1])
    >>> len(cache), out.shape, cache.nbytes
    (1000, (2, 1, 64), 299008)
    """

    def __init__(
        self,
        pattern: Pattern,
        heads: int,
        d: int,
        *,
        d_v: int | None = None,
        dtype: npt.DTypeLike = "float32",
        max_rewind: int = 32,
        capacity: int | None = None,
    ) -> None:
        self._pattern = checked_pattern(pattern)
        heads, d = checks.integer(heads, "heads", 1), checks.integer(d, "d", 1)
        d_v = d if d_v is None else checks.integer(d_v, "d_v", 1)
        self._dtype = checked_dtype(dtype)
        self._max_rewind = checks.integer(max_rewind, "max_rewind", 0)
        self._capacity = None if capacity is None else checks.integer(capacity, "capacity", 1)
        self._reach = Reach(pattern, self._capacity)
        if self._reach.size is not None:
            self._capacity = min(self._reach.size.n_k, self._capacity or checks.LARGEST)
        self._rows = Rows(pattern, self._reach)
        self._heads, self._d, self._d_v = heads, d, d_v
        self._scale = float(d**-0.5)
        self._known = 0  # rows from this position on are known to have their keys
        bound = checks.LARGEST if self._capacity is None else self._capacity
        steady = None if self._reach.lag is None else min(bound, self._reach.lag + 1 + self._max_rewind)
        wanted = min(bound, _FEWEST) if capacity is None else bound
        at_once = max(1, _AT_ONCE // (heads * (d + d_v) * self._dtype.itemsize))
        sizes = Sizes(min(at_once, wanted if steady is None else steady), steady, bound)
        pins = len(self._reach.pinned(0, min(bound, _FEWEST)))
        self._slots = Slots(heads, d, d_v, self._dtype, sizes, pins)

    # --- what it is -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Tokens of the sequence so far, held or not."""
        return self._slots.length

    def __repr__(self) -> str:
        n_slots = self._slots.ring + self._slots.room
        return (
            f"KVCache({self._pattern!r}, {self._heads}, {self._d}, d_v={self._d_v}, dtype={self._dtype.name!r}) "
            f"of {len(self):,} tokens in {n_slots:,} slots, {checks.size_text(self.nbytes)}"
        )

    @property
    def pattern(self) -> Pattern:
        return self._pattern

    @property
    def heads(self) -> int:
        """Heads of keys and values."""
        return self._heads

    @property
    def d(self) -> int:
        """Columns of keys and queries."""
        return self._d

    @property
    def d_v(self) -> int:
        """Columns of values."""
        return self._d_v

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def capacity(self) -> int | None:
        """The most tokens the sequence may have; None where there is no bound."""
        return self._capacity

    @property
    def max_rewind(self) -> int:
        """Tokens that `rewind` can drop at least, from the longest that the sequence has been."""
        return self._max_rewind

    @property
    def nbytes(self) -> int:
        """Bytes of the slots for keys and values, used or not."""
        return self._slots.nbytes

    # --- what it does ---------------------------------------------------------------------------------------------

    def append(self, key: npt.ArrayLike, value: npt.ArrayLike, *, rows: int | None = None) -> None:
        """Add tokens to the end of the sequence; they are copied.

        Parameters
        ----------
        key : array, shape (heads, m, d)
        value : array, shape (heads, m, d_v)
            In the dtype of the cache, any strides. m may be 0.
        rows : int, optional
            How many of the m tokens, from the end, `attend` may be asked for before the next `append`. By default all:
            then the keys that the first of them reaches are held until the next `append`. A prompt of which only the
            last row is wanted is taken in with ``rows=1``, and the cache does not grow with it.

        Raises
        ------
        TypeError, ValueError, MemoryError
            For what does not fit, or beyond the capacity; the cache is then as it was.

        Notes
        -----
        Time O(m) per head, and O(tokens held) where the ring changes its size: amortised O(m).
        """
        keys = self._checked(key, "key", self._d)
        values = self._checked(value, "value", self._d_v)
        m, begin = keys.shape[1], len(self)
        if values.shape[1] != m:
            raise ValueError(f"value must have as many tokens as key, {m}; got {values.shape[1]}")
        rows = m if rows is None else min(m, checks.integer(rows, "rows", 0))
        end = begin + m
        if end > (checks.LARGEST if self._capacity is None else self._capacity):
            raise ValueError(
                f"the cache must have at most capacity = {self._capacity} tokens; it has {begin} and got {m} more"
            )
        if m == 0:
            return
        pinned = self._reach.pinned(begin, end)
        known = min(end - rows, end - 1 - self._max_rewind)
        oldest = self._reach.oldest(known)
        held = max(oldest, self._slots.first)
        self._slots.make_room(max(1, end - held), len(pinned), held)
        self._slots.write(keys, values, pinned)
        self._known = known if self._slots.first <= oldest else end - rows

    @overload
    def attend(
        self,
        query: npt.ArrayLike,
        *,
        scale: float | None = ...,
        return_lse: Literal[False] = ...,
        num_threads: int | None = ...,
        **options: Unpack[StepOptions],
    ) -> Array: ...

    @overload
    def attend(
        self,
        query: npt.ArrayLike,
        *,
        scale: float | None = ...,
        return_lse: Literal[True],
        num_threads: int | None = ...,
        **options: Unpack[StepOptions],
    ) -> tuple[Array, Array]: ...

    def attend(
        self,
        query: npt.ArrayLike,
        *,
        scale: float | None = None,
        return_lse: bool = False,
        num_threads: int | None = None,
        **options: Unpack[StepOptions],
    ) -> Array | tuple[Array, Array]:
        """Attention of the last m positions over all keys so far that the pattern allows them.

        Parameters
        ----------
        query : array, shape (heads or a multiple of them, m, d)
            In the dtype of the cache. The rows of the tokens appended last can always be asked for, earlier ones as
            long as their keys are held.
        scale, return_lse, num_threads
            As in `attention`. The result does not depend on the number of threads.
        softcap : float, optional
        alibi_slopes, sinks : array, shape (query heads,), optional
            As in `attention`. Its other options are refused: they belong to batches, to training, or go by the number
            of a row in its call.

        Returns
        -------
        out : array, shape (query heads, m, d_v)
        lse : array, shape (query heads, m)
            If asked for: float32 or float64.

        Raises
        ------
        TypeError, ValueError, MemoryError
            For what does not fit, for more rows than tokens, and for rows whose keys are no longer held.

        Notes
        -----
        Time O(pairs x (d + d_v)). A step of decoding reads every key and value of its row once and is as fast as memory
        is. Chunks of more than 16 rows go through the plan and the kernels of `attention` while nothing has been
        dropped; their last bits then differ from those of single rows.
        """
        q = self._checked_query(query)
        m = q.shape[1]
        self._check_rows(m)
        factor = self._scale
        if scale is not None:
            factor = checked_scale(scale, self._d, compute_dtype(self._dtype))
        if num_threads is not None:
            num_threads = thread_count(num_threads)
        call = Call(factor, num_threads)
        if options:
            head = checked_table(options, q.shape[0], self._heads, compute_dtype(self._dtype))
            call = Call(factor, num_threads, options, head)
        out, lse = self._rows.attend(q, self._slots, return_lse, call)
        out = out.astype(self._dtype, copy=False)
        return out if lse is None else (out, lse)

    def rewind(self, k: int) -> None:
        """Drop the last k tokens: the cache is as it was before they came.

        `max_rewind` tokens can be dropped at least, counted from the longest that the sequence has been, and more as
        long as what the pattern then reaches is still held; the whole sequence always.

        Raises
        ------
        TypeError, ValueError
            If k is no integer, negative, larger than the sequence, or what would be left can no longer be attended.

        Examples
        --------
        >>> import numpy as np
        >>> from subquad import Banded, KVCache
        >>> cache = KVCache(Banded((127, 0)), heads=1, d=8)
        >>> draft = np.zeros((1, 5, 8), np.float32)
        >>> cache.append(draft, draft)
        >>> cache.rewind(3)
        >>> len(cache)
        2
        """
        k, n = checks.integer(k, "k", 0), len(self)
        if k > n:
            raise ValueError(f"k must be at most the {n} tokens of the cache; got {k}")
        if k == 0:
            return
        if k < n and n - k - 1 < self._known and self._reach.oldest(n - k - 1) < self._slots.first:
            raise ValueError(
                f"k must be at most {self._droppable()}: what the pattern reaches from further back is no longer held; "
                f"got {k}. Create the cache with max_rewind >= {k}, or drop the whole sequence, {n} tokens"
            )
        self._slots.drop(n - k)

    def fork(self) -> KVCache:
        """An independent copy: what is appended to one, or dropped from it, does not touch the other.

        Time and memory O(`nbytes`).
        """
        twin = KVCache.__new__(KVCache)
        twin.__dict__.update(self.__dict__, _slots=self._slots.copy())
        return twin

    __copy__ = fork

    # --- how ------------------------------------------------------------------------------------------------------

    def _checked(self, x: npt.ArrayLike, name: str, d: int) -> Array:
        array = self._checked_array(x, name)
        if array.ndim != 3 or array.shape[0] != self._heads or array.shape[2] != d:
            column = "d_v" if name == "value" else "d"
            raise ValueError(
                f"{name} must have shape (heads = {self._heads}, m, {column} = {d}), as the cache was created; "
                f"got {array.shape}"
            )
        return array

    def _checked_query(self, query: npt.ArrayLike) -> Array:
        q = self._checked_array(query, "query")
        if q.ndim != 3 or q.shape[2] != self._d or q.shape[0] == 0 or q.shape[0] % self._heads:
            raise ValueError(
                f"query must have shape (heads = {self._heads} or a multiple, m, d = {self._d}), as the cache was "
                f"created; got {q.shape}"
            )
        return q

    def _checked_array(self, x: npt.ArrayLike, name: str) -> Array:
        if type(x) is np.ndarray and x.dtype == self._dtype:  # nearly always
            return x
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} must not be a masked array: a pattern says what is masked; pass {name}.filled(0)")
        array = np.asarray(x)
        if array.dtype.newbyteorder("=") != self._dtype:
            raise TypeError(
                f"{name} must have the dtype of the cache, {self._dtype}; got {array.dtype}; convert it with astype, "
                "or create the cache with another dtype"
            )
        return array.astype(self._dtype, copy=False)

    def _droppable(self) -> int:
        """How many tokens can be dropped, short of all."""
        low, high = 0, len(self) - 1
        while low < high:
            k = (low + high + 1) // 2
            if self._reach.oldest(len(self) - k - 1) < self._slots.first:
                high = k - 1
            else:
                low = k
        return low

    def _check_rows(self, m: int) -> None:
        n, size = len(self), self._reach.size
        if m > n:
            raise ValueError(
                f"query must have at most as many rows as the cache has tokens, {n}; got {m}: append first"
            )
        if m and n - m < self._known and self._reach.oldest(n - m) < self._slots.first:
            raise ValueError(
                f"query must have at most {self._droppable() + 1} rows: the keys of earlier ones are no longer held; "
                f"got {m}. Attend the rows of a chunk before the next append, or raise max_rewind = {self._max_rewind}"
            )
        if m and size is not None and n - m < size.shift:
            raise ValueError(
                f"{self._pattern!r} has rows from position {size.shift} on; got a query at position {n - m}"
            )
