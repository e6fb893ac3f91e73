"""
How wide a window?
==================

A sparse pattern keeps a part of the softmax mass: how much depends on the data, and can be asked. Each call can return
the logarithm of the sum of exponentials of every row, so the mass that a pattern keeps is a difference of two
logarithms, and no weight is ever stored.
"""

import matplotlib.pyplot as plt
import numpy as np

from subquad import Banded, Causal, Global, attention

# %%
# Tokens whose neighbours resemble them: a slow random walk in 64 dimensions, with a little noise. The first few tokens
# are large, as those that trained models use as sinks are.

n, d = 4096, 64
rng = np.random.default_rng(0)
walk = np.cumsum(rng.standard_normal((n, d)), axis=0)
x = (walk - walk.mean(axis=0)) / walk.std(axis=0) + 0.3 * rng.standard_normal((n, d))
x = (1.5 * x).astype(np.float32)
x[:4] *= 1.5

_, everything = attention(x, x, x, Causal(), return_lse=True)


def mass_kept(pattern):
    """The share of the softmax mass of causal attention, the mean over all rows."""
    _, lse = attention(x, x, x, pattern & Causal(), return_lse=True)
    return float(np.exp(lse - everything).mean())


windows = [8, 16, 32, 64, 128, 256, 512, 1024]
kept = {
    "window": [mass_kept(Banded((w, 0))) for w in windows],
    "window, 4 sinks": [mass_kept(Banded((w, 0)) | Global(range(4), rows=False)) for w in windows],
}

# %%

figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
for (name, shares), colour in zip(kept.items(), ("#0072B2", "#D55E00"), strict=True):
    axes.plot(windows, shares, "o-", color=colour, label=name)
axes.set_xscale("log", base=2)
axes.set_xticks(windows, [str(w) for w in windows])
axes.set(xlabel="window, tokens", ylabel="softmax mass kept", ylim=(0, 1.02))
axes.grid(alpha=0.3)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %%
# On a text of your own: ``subquad compare --text FILE`` has the share kept in the last column of its table.
