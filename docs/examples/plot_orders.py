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
# Which one do measurements follow? A curve of n^1.5 with 5% of noise, over a 64-fold range; and n log n over a range
# that cannot tell it from its neighbours.

n = np.geomspace(64, 4096, 13).round()
noise = 1 + 0.05 * np.random.default_rng(0).standard_normal(len(n))
print(fit(n, n**1.5 * noise))
print(fit(n[-7:], n[-7:] * np.log(n[-7:]) * noise[-7:]))
plt.show()
