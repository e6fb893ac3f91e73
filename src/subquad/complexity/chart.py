"""The fourteen orders in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from subquad.complexity.orders import L_NOTATION, ORDERS, Order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Exponents of ten at which the picture ends, and n with it.
TOP, RIGHT = 9.0, 1e4
LINESTYLES = ("-", "--", "-.")


def chart(ax: Axes | None = None) -> Axes:
    """Draw the growth of all fourteen `ORDERS` on logarithmic axes. Needs the extra ``plot``.

    Parameters
    ----------
    ax : Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes

    Notes
    -----
    A power of n is a straight line here, its slope the exponent. Constants are left out, so heights say nothing; slopes
    do. L-notation bends below every power of n in the end: it is between polynomial and exponential in n's digits.

    Examples
    --------
    >>> len(chart().get_lines())
    14
    """
    from subquad import plots

    ax = plots._axes(ax, width=8.4, height=5.4)
    n = np.geomspace(2, RIGHT, 600)
    ends = []
    for number, order in enumerate(ORDERS):
        height = order.log_growth(n) / np.log(10)
        inside = np.isfinite(height) & (height <= TOP)
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        style = LINESTYLES[number // len(plots.COLOURS)]
        ax.plot(n[inside], 10 ** height[inside], style, color=colour, linewidth=1.8)
        ends.append((order, colour, n[inside][-1], height[inside][-1]))
    _label(ax, ends)
    ax.set(xscale="log", yscale="log", xlim=(2, RIGHT), ylim=(0.7, 10**TOP), xlabel="n", ylabel="growth")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _label(ax: Axes, ends: list[tuple[Order, str, float, float]]) -> None:
    """Names at the ends of the lines: on top where a line leaves there, else at the right, pushed apart."""
    style: dict[str, Any] = {"fontsize": 9, "annotation_clip": False}
    on_top = [end for end in ends if end[3] > TOP - 0.2 and end[2] < RIGHT / 1.02]
    last = 0.0
    for order, colour, x, _ in sorted(on_top, key=lambda end: end[2]):
        x = last = max(x, last * 1.55)
        ax.annotate(_name(order), (x, 10**TOP), (0, 4), textcoords="offset points", ha="center", color=colour, **style)
    lowest = -1.0
    for order, colour, _, y in sorted((end for end in ends if end not in on_top), key=lambda end: end[3]):
        y = lowest = max(y, lowest + 0.36)
        ax.annotate(
            _name(order), (RIGHT, 10**y), (6, 0), textcoords="offset points", va="center", color=colour, **style
        )


def _name(order: Order) -> str:
    drawn = {"O((log n)ᶜ)": "(log n)²", "O(nᶜ), c < 1": "√n", "O(nᶜ)": "n³", "O(cⁿ)": "2ⁿ"}
    if order is L_NOTATION:
        return "L[1/2, 1]"
    return drawn.get(str(order)) or str(order)[2:-1]
