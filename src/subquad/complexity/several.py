"""Orders of growth in several sizes at once: O(n w d)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.complexity.least_squares import Floats, aicc, two_terms
from subquad.complexity.least_squares import one_term as fit_one
from subquad.complexity.orders import CONSTANT, LINEAR, LINEARITHMIC, LOGARITHMIC, QUADRATIC, Order, power

#: Of each variable, in a product.
FACTORS = (CONSTANT, LOGARITHMIC, power(0.5), LINEAR, LINEARITHMIC, power(1.5), QUADRATIC, power(3))
#: Of each variable, where two products are added.
SUM_FACTORS = (CONSTANT, LINEAR, QUADRATIC)
MAX_VARIABLES = 4
_RESAMPLES = 400

Factors = tuple[Order, ...]


@dataclass(frozen=True)
class Term:
    """One model: a product of orders, or a sum of two, and perhaps a constant."""

    #: The factor of each variable, of each product.
    products: tuple[Factors, ...]
    order: Order
    aicc: float
    #: Root of the mean squared relative residual.
    error: float
    #: Of a product beside a constant: what it makes of y where it is largest; of a sum: the smaller part on average.
    share: float


@dataclass(frozen=True)
class SeveralFit:
    """What `fit` found for several variables.

    Attributes
    ----------
    order : Order
        Such as ``O(n w d)``, or a sum of two products, ``O(n² d + n d²)``.
    exponent, interval : dict
        Of each variable: fitted freely as one product of powers, with a 95% bootstrap interval.
    distinguishable : bool
        Whether the data rule out every other candidate; `reason` says which are left, or why.
    candidates : tuple of Term
        Likeliest first, at most 20.
    """

    order: Order
    exponent: dict[str, float]
    interval: dict[str, tuple[float, float]]
    distinguishable: bool
    candidates: tuple[Term, ...]
    reason: str
    n: dict[str, Floats] = field(repr=False)
    y: Floats = field(repr=False)

    def __str__(self) -> str:
        parts = [
            f"{name}^{self.exponent[name]:.2f} ({low:.2f} to {high:.2f})" for name, (low, high) in self.interval.items()
        ]
        text = f"{self.order}: {', '.join(parts)}"
        return text if self.distinguishable else f"{text}; {self.reason}"


def fit_several(n: Mapping[str, npt.ArrayLike], y: npt.ArrayLike, *, seed: int = 0) -> SeveralFit:
    """`fit` for a mapping of names to sizes; each size must vary by itself."""
    from subquad.complexity.fitting import FLOOR, MIN_RANGE, PARSIMONY, RIVAL, RIVAL_SHARE, WORST_ERROR

    sizes, values = _checked(n, y)
    models = sorted(_models(sizes, values, FLOOR), key=lambda model: model.aicc)
    best = models[0].aicc
    chosen = min(
        (m for m in models if m.aicc <= best + PARSIMONY), key=lambda m: (m.order.rank, len(m.products), m.aicc)
    )
    rivals = [m for m in models if m.order != chosen.order and m.aicc <= best + RIVAL and m.share >= RIVAL_SHARE]
    short = [name for name, size in sizes.items() if size.max() < MIN_RANGE * size.min()]
    reason = ""
    if short:
        reason = f"{' and '.join(short)} vary too little to tell orders apart; measure over a range of 16 or more"
    elif chosen.error > WORST_ERROR:
        reason = f"no order fits: the closest is off by {chosen.error:.0%} on average"
    elif rivals:
        others = " or ".join(dict.fromkeys(str(m.order) for m in rivals[:3]))
        reason = f"cannot tell {chosen.order} from {others} on these {len(values)} points"
    exponent, interval = _exponents(sizes, values, checks.integer(seed, "seed", 0))
    return SeveralFit(chosen.order, exponent, interval, not reason, tuple(models[:20]), reason, sizes, values)


def _checked(n: Mapping[str, npt.ArrayLike], y: npt.ArrayLike) -> tuple[dict[str, Floats], Floats]:
    from subquad.complexity.fitting import checked_series

    if not 1 <= len(n) <= MAX_VARIABLES:
        raise ValueError(f"n must name one to {MAX_VARIABLES} variables; got {len(n)}")
    values = checked_series(y, "y")
    sizes = {str(name): checked_series(size, str(name)) for name, size in n.items()}
    for name, size in sizes.items():
        if len(size) != len(values):
            raise ValueError(f"{name} must have one value for each y; got {len(size)} for {len(values)}")
        if len(np.unique(size)) < 3:
            raise ValueError(f"{name} must hold at least 3 different sizes; got {len(np.unique(size))}")
    if len(values) < len(sizes) + 4:
        raise ValueError(f"y must hold at least {len(sizes) + 4} points for {len(sizes)} variables; got {len(values)}")
    return sizes, values


def _models(sizes: Mapping[str, Floats], y: Floats, floor: float) -> Iterable[Term]:
    """Products alone and with a constant; sums of two products over few factors."""
    names, target = list(sizes), np.ones((1, len(y)))
    products = list(itertools.product(FACTORS, repeat=len(names)))
    columns = np.array([_value(product, sizes) for product in products]) / y
    top = columns * y
    for lower in (None, 1 / y):
        found = fit_one(columns, target) if lower is None else two_terms(lower, columns, target)
        criteria = aicc(found.rss[:, 0], len(y), 1 + (lower is not None), floor)
        share = found.second[:, 0] * top.max(axis=1)
        share = share / np.maximum(share + found.first[:, 0], 1e-300)
        for k, product in enumerate(products):
            if lower is None or any(factor is not CONSTANT for factor in product):
                error = float((found.rss[k, 0] / len(y)) ** 0.5)
                yield Term((product,), _order([product], names), float(criteria[k]), error, float(share[k]))
    yield from _sums(sizes, y, floor)


def _sums(sizes: Mapping[str, Floats], y: Floats, floor: float) -> Iterable[Term]:
    """Pairs of products; which pair was chosen, out of hundreds, counts as a parameter."""
    names = list(sizes)
    few = [p for p in itertools.product(SUM_FACTORS, repeat=len(names)) if any(f is not CONSTANT for f in p)]
    columns = np.array([_value(product, sizes) for product in few])
    for i, j in itertools.combinations(range(len(few)), 2):
        found = two_terms(columns[i] / y, columns[j : j + 1] / y, np.ones((1, len(y))))
        rss, first, second = (float(x[0, 0]) for x in found)
        if not (first > 0 and second > 0):
            continue
        parts = first * columns[i], second * columns[j]
        shares = [float((part / (parts[0] + parts[1])).mean()) for part in parts]
        order = _order([few[i], few[j]], names)
        yield Term((few[i], few[j]), order, float(aicc(rss, len(y), 3, floor)), (rss / len(y)) ** 0.5, min(shares))


def _value(product: Factors, sizes: Mapping[str, Floats]) -> Floats:
    """The product at every point, at most 1."""
    growth = sum(factor.log_growth(size) for factor, size in zip(product, sizes.values(), strict=True))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.exp(growth - np.max(growth)))


def _order(products: list[Factors], names: list[str]) -> Order:
    """The sum of the products, without those that another one outgrows in every variable."""
    kept = [p for p in products if not any(q != p and all(a <= b for a, b in zip(p, q, strict=True)) for q in products)]
    kept.sort(key=lambda product: tuple(factor.rank for factor in product), reverse=True)
    text = " + ".join(_written(product, names) for product in kept)
    rank = max(tuple(sum(part) for part in zip(*(factor.rank for factor in p), strict=True)) for p in kept)
    return Order(f"O({text})", rank)


def _written(product: Factors, names: list[str]) -> str:
    """Powers first, logs last: n d log n."""
    from subquad.complexity.fitting import bare

    powers, logs = [], []
    for factor, name in zip(product, names, strict=True):
        if factor in (LOGARITHMIC, LINEARITHMIC):
            logs.append(f"log {name}")
        if factor is LINEARITHMIC:
            powers.append(name)
        elif factor not in (CONSTANT, LOGARITHMIC):
            powers.append(bare(factor).replace("n", name))
    return " ".join(powers + logs) or "1"


def _exponents(
    sizes: Mapping[str, Floats], y: Floats, seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Least squares of log y on the logs, and a bootstrap of its residuals."""
    design: Any = np.column_stack([np.ones(len(y)), *(np.log(size) for size in sizes.values())])
    solve = np.linalg.pinv(design)
    coefficients = solve @ np.log(y)
    residuals = np.log(y) - design @ coefficients
    residuals = residuals * np.sqrt(len(y) / max(1, len(y) - design.shape[1]))
    draws = np.random.default_rng(seed).choice(residuals, (_RESAMPLES, len(y)))
    low, high = np.quantile((design @ coefficients + draws) @ solve.T, [0.025, 0.975], axis=0)
    names = list(sizes)
    exponent = {name: float(coefficients[1 + k]) for k, name in enumerate(names)}
    return exponent, {name: (float(low[1 + k]), float(high[1 + k])) for k, name in enumerate(names)}
