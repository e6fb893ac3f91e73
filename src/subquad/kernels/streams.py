"""What memory gives: a plain read, and the triad of STREAM (McCalpin, 1995)."""

from subquad.kernels.memory import load, store
from subquad.kernels.simd import fma, splat, width_of


def read(x, sums, n):
    """sums = lane sums of n elements, a multiple of four vectors: four independent chains."""
    lanes = width_of(x)
    a = b = c = d = splat(x, 0.0)
    for i in range(0, n, 4 * lanes):
        a, b = a + load(x, i), b + load(x, i + lanes)
        c, d = c + load(x, i + 2 * lanes), d + load(x, i + 3 * lanes)
    store(sums, 0, a + b + c + d)


def triad(a, b, c, factor, n):
    """a = b + factor c over n elements, a multiple of a vector."""
    s = splat(a, factor)
    for i in range(0, n, width_of(a)):
        store(a, i, fma(s, load(c, i), load(b, i)))
