"""
A million tokens, drawn
=======================

A pattern of a million queries and keys has 10¹² places for pairs. A picture of it costs what its pixels cost: each one
asks the pattern about the rectangle it stands for. White means that no allowed pair was found; the least share allowed
is a third dark, so that a line one key wide in a million is still seen.
"""

import time

import matplotlib.pyplot as plt

from subquad import LogSparse, Neighborhood, bigbird, longformer, streaming
from subquad.plots import plot_pattern

N = 1_000_000
patterns = {
    "longformer": longformer(2000, range(2000)),
    "bigbird": bigbird(256),
    "log-sparse": LogSparse(),
    "grid": Neighborhood((1000, 1000), 31),
}

figure, axes = plt.subplots(2, 2, figsize=(8, 8), layout="constrained")
for panel, (name, pattern) in zip(axes.flat, patterns.items(), strict=True):
    start = time.process_time()
    plot_pattern(pattern, N, ax=panel).set_title(name)
    print(f"{name:<10} {time.process_time() - start:.2f} s")

# %%
# What is one pixel wide there is a pattern of its own up close. The last 64 of a million rows, the queries of 64
# decoded tokens: fewer queries than keys, and the last query meets the last key.

figure, axes = plt.subplots(figsize=(6.4, 2.4), layout="constrained")
plot_pattern(streaming(4, 24), 64, 256, ax=axes).set_title("streaming(4, 24): 64 queries, 256 keys", fontsize=9)
plt.show()
