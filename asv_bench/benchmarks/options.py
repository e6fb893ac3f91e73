"""What an option or half precision costs: the same call with and without it, in turn.

`python -m benchmarks.options` prints them all, forward and backward.
"""

import statistics
import time

import ml_dtypes
import numpy as np

import subquad

from .common import THREADS, inputs

N = 4096
HEADS = 2
WINDOW = subquad.Banded(256)
ROUNDS = 15


def bent(score, b, h, i, j):
    """A function of the user's own, in float32 throughout."""
    return score * np.float32(0.5) + np.float32(h)


def every_other(b, h, i, j):
    return (i + j) % 2 == 0


OPTIONS = {
    "softcap": {"softcap": 20.0},
    "alibi_slopes": {"alibi_slopes": [0.5, 0.25]},
    "sinks": {"sinks": [0.1, 0.2]},
    "key_lengths": {"key_starts": 10, "key_lengths": N - 10},
    "dropout": {"dropout": 0.1, "seed": 1},
    "score_mod": {"score_mod": bent},
    "mask_mod": {"mask_mod": every_other},
}
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def prepared(name, backward):
    """The call with an option, or on halves."""
    arrays = [x.astype(HALVES.get(name, np.float32)) for x in inputs(N, HEADS)]
    options = OPTIONS.get(name, {})
    if not backward:
        return lambda: subquad.attention(*arrays, WINDOW, num_threads=THREADS, **options)
    out, lse = subquad.attention(*arrays, WINDOW, return_lse=True, **options)
    given = arrays[0], *arrays, out, lse
    return lambda: subquad.attention_backward(*given, WINDOW, num_threads=THREADS, **options)


def seconds(call):
    begin = time.process_time()
    call()
    return time.process_time() - begin


def times_plain(name, backward):
    """Time with the option over time without: the median of rounds, each of which takes both orders.

    In one order alone the same call, twice, would seem to cost up to 2%.
    """
    call, plain = prepared(name, backward), prepared("", backward)
    call(), plain()

    rounds = [[seconds(f) for f in (call, plain, plain, call)] for _ in range(ROUNDS)]
    return statistics.median((a + d) / (b + c) for a, b, c, d in rounds)


class Options:
    version = "1"
    timeout = 120
    param_names = ("option",)
    params = ([*OPTIONS, *HALVES],)

    def track_times_plain(self, name):
        """Forward, Banded(256), float32 (or halves), d = 64."""
        return times_plain(name, backward=False)

    track_times_plain.unit = "times the plain call"


if __name__ == "__main__":
    print(f"{'':14}  forward  backward   (time over that of the plain call, medians of {ROUNDS})")
    for name in Options.params[0]:
        print(f"{name:14}  {times_plain(name, False):7.3f}  {times_plain(name, True):8.3f}", flush=True)
