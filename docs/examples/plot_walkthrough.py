"""
From dot products to sparse attention
=====================================

The walk of the article "The Big O notation and its significance in LLMs", each step computed and drawn: scores and
softmax weights, several heads and their concatenated outputs, why that is O(n²), a local window and its diagonal band,
then local, strided, global, random and Longformer attention side by side, and the growth of dense and sparse attention,
measured.
"""

# %%
# Scaled dot products
# -------------------
# Five tokens with eight numbers each. Every token meets every token: 5 x 5 scores, n² of them. Softmax turns a row of
# scores into weights that add up to 1, and the output is the values added up with those weights.

import matplotlib.pyplot as plt
import numpy as np

import subquad
from subquad import Banded, Dense, Global, MultiHeadAttention, Random, Strided, attention, longformer, plots

np.set_printoptions(precision=3, suppress=True, linewidth=100)
n, embed = 5, 8
x = np.random.default_rng(0).standard_normal((n, embed))

scores = subquad.attention_scores(x, x, Dense())  # x . x / sqrt(8), the allowed pairs as sparse rows: here, all
weights = subquad.attention_weights(x, x, Dense())
out = attention(x, x, x)
print(scores.to_scipy().toarray())

# %%
figure, axes = plt.subplots(figsize=(4.6, 3.8))
plots.plot_weights(weights, ax=axes).set_title("softmax weights")

# %%
# Several heads
# -------------
# Each head attends in its own projections of the tokens. The outputs of two heads with 4 columns each stand side by
# side, 5 x 8 again, and are projected once more.

attend = MultiHeadAttention(embed, 2, Dense(), seed=0)
concatenated = attend.concatenated(x)
print(concatenated)
print("projected:", attend(x), sep="\n")

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
plots.plot_heads(attend.weights(x), axes=axes)

# %%
# The bottleneck
# --------------
# Pairs, and the memory that one head's scores take in float32.

from subquad.complexity import cost

print(f"{'n':>9} {'dense pairs':>15} {'GB':>9} {'Banded(128)':>13}")
for size in (1024, 16_384, 262_144):
    print(f"{size:>9,} {size**2:>15,} {4 * size**2 / 1e9:>9.3f} {cost(Banded(128), size).pairs:>13,}")

# %%
# Local attention
# ---------------
# Each token sees two neighbours on either side: a diagonal band of weights, and nothing elsewhere.

tokens = np.random.default_rng(1).standard_normal((12, embed))
local = subquad.attention_weights(tokens, tokens, Banded(2))
band = local.to_scipy().toarray()

figure, axes = plt.subplots(figsize=(4.6, 3.8))
plots.plot_weights(local, ax=axes).set_title("weights in a window of 2")

# %%
# Five patterns
# -------------

patterns = {
    "local": Banded(4),
    "strided": Strided(8),
    "global": Global(range(2)),
    "random": Random(4, seed=0),
    "longformer": longformer(4, 2),
}
figure, axes = plt.subplots(1, 5, figsize=(13, 3), layout="constrained")
for panel, (name, pattern) in zip(axes, patterns.items(), strict=True):
    share = pattern.density(64, 64)
    plots.plot_pattern(pattern, 64, ax=panel).set_title(
        f"{name}: {share:.0%} of the pairs, {pattern.order}", fontsize=9
    )

# %%
# Measured growth
# ---------------
# Processor time of one thread, the least of several calls. `subquad scale` does the same from the command line.

from subquad.complexity.scaling import Setting, scale

SIZES = [512, 724, 1024, 1448, 2048, 2896, 4096, 5793, 8192]
growing = {"dense": Dense(), "local": Banded(64), "longformer": longformer(64, 16), "random": Random(64, seed=0)}
measured = scale(growing, SIZES, Setting(d=64, repeats=5, budget=5.0))
fits = {found.pattern: found.time for found in measured}
for name, found in fits.items():
    print(f"{name:<10} {found}")

# %%
figure, axes = plt.subplots(figsize=(6.4, 4.4))
plots.plot_scaling(fits, ax=axes, ylabel="time of one call, s")
plt.show()
