"""Memory beyond inputs and output, as a ratio, measured in a child process.

`peakmem_*` would count LLVM's code and the inputs too, and they are larger than what is claimed.
"""

from subquad.complexity.memory import extra_memory

from .common import DIM, PATTERNS, THREADS

FLOAT32 = 4


class Extra:
    """One head, because the claim is about n: the workspace does not grow with the heads.

    The lengths keep a result well above the quarter of a megabyte to which it is exact.
    """

    version = "1"
    timeout = 120
    param_names = ("pattern", "n")
    params = (["banded", "strided", "random", "bigbird"], [16_384, 65_536])

    def track_extra_over_scores(self, name, n):
        """What an n x n score matrix would have taken is 1; must fall as n grows."""
        return extra_bytes(name, n) / (n * n * FLOAT32)

    def track_extra_over_arrays(self, name, n):
        """Query, key, value and output together are 1; must not grow with n where the pairs are O(n)."""
        return extra_bytes(name, n) / (4 * n * DIM * FLOAT32)


Extra.track_extra_over_scores.unit = "n x n score matrices"
Extra.track_extra_over_arrays.unit = "inputs and output"


def extra_bytes(name: str, n: int) -> int:
    return extra_memory(PATTERNS[name], n, d=DIM, heads=1, num_threads=THREADS)
