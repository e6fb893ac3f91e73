"""Orders planted and found
========================

How often `subquad.complexity.fit` names the right order, on curves whose order is known, beside the package big_O on
the same data::

    python docs/examples/planted_orders.py            # the table of docs/complexity.md, about eight minutes
    python docs/examples/planted_orders.py --trials 20

Each trial is a curve of one order over a 64-fold range of n, times 1 + 5% of normal noise. An answer is right where the
order is the planted one, and confidently wrong where it is another and `distinguishable` says it is certain. big_O
never says that it cannot tell, so each of its wrong answers is confident; where it answers "polynomial", its exponent
counts: within 0.1 of the planted one it is right.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

import numpy as np

from subquad.complexity import Order, fit, parse_order

#: Classes that differ by a factor of about n^0.5 from their neighbours.
HALF_POWERS = ("O(1)", "O(n^0.5)", "O(n)", "O(n^1.5)", "O(n²)", "O(n^2.5)", "O(n³)")
#: The classes that big_O has a name for and that this range can tell.
NAMED = ("O(1)", "O(n)", "O(n log n)", "O(n²)", "O(n³)")
SMALLEST, RANGE = 64, 64


@dataclass(frozen=True)
class Rates:
    """Shares of the trials of one order."""

    right: float
    confidently_wrong: float
    cannot_tell: float
    #: The interval contains the planted exponent.
    covered: float
    big_o_right: float


def series(order: Order, n: np.ndarray, rng: np.random.Generator, noise: float, overhead: float) -> np.ndarray:
    """A planted curve; `overhead` is a constant beside it, as a multiple of its smallest value."""
    growth = order(n)
    return (growth + overhead * growth[0]) * (1 + noise * rng.standard_normal(len(n)))


def big_o_is_right(n: np.ndarray, y: np.ndarray, order: Order) -> bool:
    from big_o import complexities
    from big_o.big_o import infer_big_o_class

    names = {"O(1)": "Constant", "O(log n)": "Logarithmic", "O(n)": "Linear", "O(n log n)": "Linearithmic"}
    names |= {"O(n²)": "Quadratic", "O(n³)": "Cubic"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best, _ = infer_big_o_class(n, y)
    if isinstance(best, complexities.Polynomial):
        return str(order) != "O(n log n)" and abs(best.coefficients()[1] - order.rank[0]) <= 0.1
    return type(best).__name__ == names.get(str(order))


def rates(notation: str, trials: int, points: int, *, noise: float = 0.05, overhead: float = 0.0) -> Rates:
    """Play `trials` seeded trials of one order."""
    order = parse_order(notation)
    n = np.round(np.geomspace(SMALLEST, SMALLEST * RANGE, points))
    found = []
    for seed in range(trials):
        y = series(order, n, np.random.default_rng(seed), noise, overhead)
        result = fit(n, y)
        right = result.order == order
        low, high = result.interval
        covered = low - 0.01 <= order.rank[0] <= high + 0.01  # the grid of exponents has steps of 0.02
        found.append(
            (
                right,
                not right and result.distinguishable,
                not result.distinguishable,
                covered,
                big_o_is_right(n, y, order),
            )
        )
    return Rates(*(float(share) for share in np.mean(found, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[1].rstrip(":").split()))
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    for title, orders, points, overhead in (
        ("7 points", HALF_POWERS, 7, 0.0),
        ("13 points", HALF_POWERS, 13, 0.0),
        ("13 points, and a constant as large as the smallest value", HALF_POWERS[1:], 13, 1.0),
        ("13 points, the classes big_O names", NAMED, 13, 0.0),
    ):
        print(f"\n{title}, {trials:,} trials an order\n")
        print("| planted | right | confidently wrong | cannot tell | exponent in interval | big_O right |")
        print("|---|---|---|---|---|---|")
        for notation in orders:
            r = rates(notation, trials, points, overhead=overhead)
            covered = f"{r.covered:.1%}" if "log" not in notation else ""
            print(
                f"| `{notation}` | {r.right:.1%} | {r.confidently_wrong:.1%} | {r.cannot_tell:.1%} | {covered} "
                f"| {r.big_o_right:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
