"""
Fourteen orders of growth
=========================

The orders of the standard table, as values: they can be called, compared, printed, drawn, and told from measurements.
"""

import matplotlib.pyplot as plt
import numpy as np

from subquad.complexity import ORDERS, chart, fit

figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
chart(ax=axes)

# %%
for order in ORDERS:
    print(f"{order!s:<14} {order.name:<20} {order.meaning}")

# %%
# Which one do measurements follow? Time of sorting, with 5% of noise, over a 64-fold range; and the answer where the
# range is too short to tell.

n = np.geomspace(64, 4096, 13).round()
noise = 1 + 0.05 * np.random.default_rng(0).standard_normal(len(n))
print(fit(n, n**1.5 * noise))
print(fit(n[:5], n[:5] * np.log(n[:5]) * noise[:5]))
plt.show()
