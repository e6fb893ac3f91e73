"""Options of a step of decoding: those of `attention` that mean the same for a row, however many come with it."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from subquad.inputs import Inputs
from subquad.options import AttentionOptions, checked_options, head_table
from subquad.patterns.spans import Ints


class StepOptions(TypedDict, total=False):
    """Keywords of `KVCache.attend`; what they mean is said at `attention`."""

    softcap: float | None
    alibi_slopes: npt.ArrayLike | None
    sinks: npt.ArrayLike | None


_REFUSED = {
    "key_lengths": "a cache is one length for all heads; give each sequence a cache of its own",
    "key_starts": "a cache begins with its first token; leave padding out of append",
    "q_offset": "rows stand at the last positions of the cache; use rewind to go back",
    "score_mod": "its row number would start again with every call; use softcap or alibi_slopes, or call attention",
    "mask_mod": "its row number would start again with every call; say it in the pattern, or call attention",
    "dropout": "a cache is for inference; call attention",
    "seed": "a cache is for inference; call attention",
}


def checked_table(given: StepOptions, query_heads: int, key_heads: int, dtype: np.dtype[Any]) -> Ints | None:
    """The options of each query head as the kernels take them, (query heads, HEAD_COLUMNS); None without any.

    Raises
    ------
    TypeError, ValueError
        For a name that is none, or none of decoding, and for what does not fit.
    """
    asked: AttentionOptions = {}
    for name, x in given.items():
        if name not in StepOptions.__annotations__:
            import difflib  # only for this message

            near = difflib.get_close_matches(name, StepOptions.__annotations__, 1)
            other = f"did you mean {near[0]}?" if near else f"there are {', '.join(StepOptions.__annotations__)}"
            raise TypeError(f"KVCache.attend has no option {name!r}: {_REFUSED.get(name, other)}")
        if x is not None:
            asked[name] = x  # type: ignore[literal-required]
    if not asked:
        return None
    one = np.zeros((), dtype)
    # a query and a key for each head: its row stands at position 0, from which distances are counted
    arrays = tuple(np.broadcast_to(one, (1, heads, 1, 1)) for heads in (query_heads, key_heads, key_heads))
    inputs = Inputs(arrays, (1, query_heads), dtype)
    table: Ints = head_table(checked_options(asked, inputs), inputs)[0]
    return table
