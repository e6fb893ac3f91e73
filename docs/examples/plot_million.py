"""
A million tokens, drawn
=======================

A pattern of a million queries and keys has 10¹² places for pairs. A picture of it costs what its pixels cost: each one
asks the pattern about the rectangle it stands for. White means that no allowed pair was found; the least share allowed
is a third dark, so that a line one key wide in a million is still seen.
"""

import matplotlib.pyplot as plt

from subquad import Causal, bigbird, longformer, sparse_transformer_fixed, streaming
from subquad.plots import plot_pattern

N = 1_000_000
patterns = {
    "longformer": longformer(20_000, range(1000)),
    "bigbird": bigbird(2048),
    "fixed": sparse_transformer_fixed(65_536, 2048),
    "streaming": streaming(4, 50_000) & Causal(),
}

figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
for panel, (name, pattern) in zip(axes, patterns.items(), strict=True):
    plot_pattern(pattern, N, ax=panel).set_title(f"{name}: {100 * pattern.density(N, N):.2g}% of the pairs", fontsize=9)

# %%
# What is one pixel wide there is a pattern of its own up close. The last 64 of a million rows, the queries of 64
# decoded tokens: fewer queries than keys, and the last query meets the last key.

figure, axes = plt.subplots(figsize=(6.4, 2.4), layout="constrained")
plot_pattern(streaming(4, 24), 64, 256, ax=axes).set_title("streaming(4, 24): 64 queries, 256 keys", fontsize=9)
plt.show()
