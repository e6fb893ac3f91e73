"""Which order of growth a series of measurements follows, and whether the measurements can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.complexity.least_squares import Floats, aicc, one_term, two_terms
from subquad.complexity.orders import (
    CONSTANT,
    DOUBLE_LOGARITHMIC,
    EXPONENTIAL,
    FACTORIAL,
    LINEAR,
    LINEARITHMIC,
    LOGARITHMIC,
    POLYLOGARITHMIC,
    QUADRATIC,
    Order,
    parse_order,
    power,
)

if TYPE_CHECKING:
    from subquad.complexity.several import SeveralFit

#: Candidates. Left out are orders that no measurement can tell from another: α(n) and log* n are constant on all n that
#: fit a machine, and L-notation imitates any power of n.
FITTED = (
    CONSTANT,
    DOUBLE_LOGARITHMIC,
    LOGARITHMIC,
    POLYLOGARITHMIC,
    power(0.5),
    LINEAR,
    LINEARITHMIC,
    power(1.5),
    QUADRATIC,
    power(2.5),
    power(3),
    power(4),
    EXPONENTIAL,
    FACTORIAL,
)
MIN_POINTS = 5
#: Largest over smallest n below which nothing is told.
MIN_RANGE = 4.0
#: Relative error below which no model is better than another.
FLOOR = 1e-3
#: A relative error of the best model above which no order is said to fit.
WORST_ERROR = 0.25
#: A larger order must be better by so much in AICc than a smaller one (its evidence e^2.5 times larger) to be chosen.
PARSIMONY = 5.0
#: Orders whose AICc is within so much of the best (evidence ratio 55) are rivals: the data do not rule them out.
RIVAL = 8.0
#: A rival's leading term must make at least so much of y at the largest n: 1 + n/1000 is no rival of 1.
RIVAL_SHARE = 0.25
#: A free exponent is a class of its own only where it is so far from those of the candidates, and so much better.
OWN_CLASS = (0.1, 4.0)

_EXPONENTS = np.arange(0, 8.001, 0.02)
_RESAMPLES = 300
_NEAR = 1.5  # resampled exponents are looked for so far from the one found


@dataclass(frozen=True)
class Candidate:
    """One order, with the best of its models: the order alone, with a constant, or with a linear term beside it."""

    order: Order
    aicc: float
    #: Root of the mean squared relative residual.
    error: float
    #: What the leading term makes of y at the largest n.
    share: float
    #: Constant part of the model, in the unit of y.
    overhead: float
    #: y at n, from the model: lower order, its value and the leading one's at the largest n; growth of an exponential.
    _terms: tuple[Order, float, float, float, float] = field(repr=False)

    def predict(self, n: npt.ArrayLike) -> Floats:
        """y at n by this model."""
        lower, lower_value, value, largest, rate = self._terms
        n = np.asarray(n, np.float64)
        with np.errstate(over="ignore"):
            leading = value * np.exp(_log_growth(self.order, n, rate) - _log_growth(self.order, largest, rate))
            return np.asarray(leading + lower_value * lower(n) / lower(largest))


@dataclass(frozen=True)
class Fit:
    """What `fit` found.

    Attributes
    ----------
    order : Order
        The smallest order that is about as likely as the likeliest.
    exponent : float
        Of n, fitted freely: ``y = a + b n**exponent``.
    interval : tuple of float
        95% bootstrap interval of the exponent.
    distinguishable : bool
        Whether the data rule out every other candidate. Where not, `reason` says which are left, or why.
    candidates : tuple of Candidate
        All orders considered, likeliest first.
    reason : str
        In one sentence, where the order cannot be told; else empty.
    n, y : array
        The data.
    """

    order: Order
    exponent: float
    interval: tuple[float, float]
    distinguishable: bool
    candidates: tuple[Candidate, ...]
    reason: str
    n: Floats = field(repr=False)
    y: Floats = field(repr=False)

    def __str__(self) -> str:
        low, high = self.interval
        text = f"{self.order}: exponent {self.exponent:.2f}, 95% interval {low:.2f} to {high:.2f}"
        return text if self.distinguishable else f"{text}; {self.reason}"

    def predict(self, n: npt.ArrayLike) -> Floats:
        """y at n by the model of the chosen order."""
        return next(c for c in self.candidates if c.order == self.order).predict(n)

    def holds(self, order: Order | str, *, exactly: bool = False, tolerance: float = 0.1) -> bool:
        """Whether the data are within an order: the exponent's interval is not above that of the order on this range.

        Parameters
        ----------
        order : Order or str
            An upper bound, as O() is; with `exactly` a lower bound too.
        tolerance : float
            Of the exponent: caches and overheads bend measured curves by about so much.
        """
        declared = local_exponent(parse_order(order), self.n)
        low, high = self.interval
        return low - tolerance <= declared and (not exactly or declared <= high + tolerance)


@overload
def fit(n: npt.ArrayLike, y: npt.ArrayLike, *, seed: int = ...) -> Fit: ...


@overload
def fit(n: Mapping[str, npt.ArrayLike], y: npt.ArrayLike, *, seed: int = ...) -> SeveralFit: ...


def fit(n: npt.ArrayLike | Mapping[str, npt.ArrayLike], y: npt.ArrayLike, *, seed: int = 0) -> Fit | SeveralFit:
    """The order of growth of y in n, with how sure one can be of it.

    Parameters
    ----------
    n : array-like, shape (points,), or mapping of names to such
        Sizes, above 0, at least 5 different ones; for a mapping see `SeveralFit`.
    y : array-like, shape (points,)
        Times, bytes, counts: above 0.
    seed : int, optional
        Of the bootstrap.

    Returns
    -------
    Fit, or SeveralFit for a mapping
        Where the range of n is too short, the noise too large or two orders too close, `distinguishable` is False and
        `reason` says so.

    Raises
    ------
    TypeError, ValueError
        Fewer than 5 different n, lengths that differ, values that are not finite or not above 0.

    Notes
    -----
    Each order is fitted by non-negative least squares of relative residuals, alone and with a constant beside it (from
    n² on also with a linear term), and the models are compared by AICc [1]_. The smallest order within 5 of the best is
    chosen; those within 8 are rivals, and the order can be told where there are none. `docs/complexity.md` has the
    error rates. Time O(points), about 10 ms; nothing is random but the bootstrap.

    References
    ----------
    .. [1] Hurvich, Tsai, Regression and Time Series Model Selection in Small Samples (1989).

    Examples
    --------
    >>> n = [64, 128, 256, 512, 1024, 2048, 4096]
    >>> found = fit(n, [3e-9 * x * x + 1e-5 for x in n])
    >>> str(found.order), found.distinguishable, round(found.exponent, 1)
    ('O(n²)', True, 2.0)
    """
    if isinstance(n, Mapping):
        from subquad.complexity.several import fit_several

        return fit_several(n, y, seed=seed)
    sizes, values = checked_series(n, "n"), checked_series(y, "y")
    if len(sizes) != len(values):
        raise ValueError(f"y must have one value for each n; got {len(values)} for {len(sizes)}")
    different = len(np.unique(sizes))
    if different < MIN_POINTS:
        raise ValueError(f"n must hold at least {MIN_POINTS} different sizes to tell orders apart; got {different}")
    order = np.argsort(sizes, kind="stable")
    sizes, values = sizes[order], values[order]
    models = sorted(_models(sizes, values), key=lambda model: model.aicc)
    exponent, interval, free_aicc = _free_exponent(sizes, values, checks.integer(seed, "seed", 0))
    own = _own_class(sizes, values, exponent, free_aicc, models[0].aicc)
    if own is not None:
        models.insert(0, own)
    best = models[0]
    chosen = min((model for model in models if model.aicc <= best.aicc + PARSIMONY), key=lambda model: model.order)
    rivals = [
        model.order
        for model in models
        if model.order != chosen.order and model.aicc <= best.aicc + RIVAL and model.share >= RIVAL_SHARE
    ]
    if np.isinf(chosen.order.rank[0]):
        exponent, interval = np.inf, (np.inf, np.inf)  # faster than every power of n
    reason = _reason(sizes, chosen, sorted(set(rivals)))
    likeliest = {model.order: model for model in reversed(models)}
    candidates = tuple(sorted(likeliest.values(), key=lambda model: model.aicc))
    return Fit(chosen.order, exponent, interval, not reason, candidates, reason, sizes, values)


def checked_series(x: Any, name: str) -> Floats:
    """One axis of finite numbers above 0."""
    try:
        series = np.asarray(x, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a sequence of numbers; got {x!r}") from None
    if series.ndim != 1:
        raise ValueError(f"{name} must have one axis; got shape {series.shape}")
    wrong = ~(np.isfinite(series) & (series > 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"{name} must hold finite numbers above 0; got {series[at]} at position {at}")
    return series


def local_exponent(order: Order, n: Floats) -> float:
    """The exponent of the power of n that is closest to an order on this range: 1.15 for n log n on 64 to 4096."""
    if order == CONSTANT:
        return 0.0
    growth = order.log_growth(np.maximum(n, 3))
    return float(np.polyfit(np.log(n), growth, 1)[0])


def _reason(n: Floats, chosen: Candidate, rivals: list[Order]) -> str:
    span = n[-1] / n[0]
    if span < MIN_RANGE:
        return f"n grows {span:.2g}-fold, too little to tell orders apart; measure over a range of 16 or more"
    if chosen.error > WORST_ERROR:
        return f"no order fits: the closest is off by {chosen.error:.0%} on average"
    if rivals:
        others = " or ".join(bare(order) for order in rivals)
        return f"cannot tell {bare(chosen.order)} from {others} on this range ({span:.3g}-fold, {len(n)} points)"
    return ""


def bare(order: Order) -> str:
    """The notation without the O( )."""
    return str(order).removeprefix("O(").removesuffix(")") if str(order).startswith("O(") else str(order)


def _log_growth(order: Order, n: Any, rate: float) -> Floats:
    """Log of an order's growth; `rate` is the fitted log c of an exponential c^n."""
    return rate * np.asarray(n, np.float64) if order is EXPONENTIAL else order.log_growth(n)


def _models(n: Floats, y: Floats) -> Iterator[Candidate]:
    """Every order's models; for the exponential the best base alone, which costs it a parameter."""
    for order in FITTED:
        rates = _rates(n, y) if order is EXPONENTIAL else np.zeros(1)
        growth = np.array([_log_growth(order, n, rate) for rate in rates])
        basis = np.exp(growth - growth[:, -1:])
        yield from _models_of(order, n, y, basis, rates, extra=order is EXPONENTIAL)


def _rates(n: Floats, y: Floats) -> Floats:
    """Log c of exponentials c^n: from e-fold growth over the range to all a float64 holds, finely around the best."""
    rates = np.geomspace(1, 700, 200) / (n[-1] - n[0])
    for _ in range(4):
        columns = np.exp(rates[:, None] * (n - n[-1])) / y
        k = int(two_terms(1 / y, columns, np.ones((1, len(y)))).rss[:, 0].argmin())
        rates = np.linspace(rates[max(k - 1, 0)], rates[min(k + 1, len(rates) - 1)], 21)
    return np.asarray(rates)


def _models_of(
    order: Order, n: Floats, y: Floats, basis: Floats, rates: Floats, *, extra: bool = False
) -> Iterator[Candidate]:
    columns, target = basis / y, np.ones((1, len(y)))
    lowers = [] if order is CONSTANT else [CONSTANT]
    if order.rank >= QUADRATIC.rank and order not in (EXPONENTIAL, FACTORIAL):
        lowers.append(LINEAR)  # projections beside attention: n d² + n² d
    for lower in [None, *lowers]:
        if lower is None:
            solution = one_term(columns, target)
        else:
            solution = two_terms(lower(n) / lower(n[-1]) / y, columns, target)
        k = int(solution.rss[:, 0].argmin())
        rss, first, second = (float(x[k, 0]) for x in solution)
        criterion = float(aicc(rss, len(y), 1 + (lower is not None) + extra, FLOOR))
        overhead = first if lower is CONSTANT else 0.0
        terms = (lower or CONSTANT, first, second, float(n[-1]), float(rates[k]))
        predicted = first + second
        share = 1.0 if lower is None else second / predicted if predicted else 0.0
        yield Candidate(order, criterion, (rss / len(y)) ** 0.5, share, overhead, terms)


def _free_exponent(n: Floats, y: Floats, seed: int) -> tuple[float, tuple[float, float], float]:
    """Exponent of ``y = a + b n**c`` or ``b n**c``, whichever AICc prefers; its bootstrap interval; and that AICc.

    Relative residuals are drawn again and the whole choice is made anew for each of the series so made.
    """
    exponent, criterion, prediction = _best_power(_EXPONENTS, n, y, np.ones((1, len(y))))
    fitted = prediction[0]
    residuals = y / fitted - 1
    residuals = (residuals - residuals.mean()) * np.sqrt(len(y) / (len(y) - 2))
    rng = np.random.default_rng(seed)
    series = 1 + rng.choice(residuals, (_RESAMPLES, len(y)))
    near = np.abs(_EXPONENTS - exponent[0]) <= _NEAR
    resampled, _, _ = _best_power(_EXPONENTS[near], n, fitted, np.maximum(series, 0))
    low, high = np.quantile(resampled, [0.025, 0.975])
    value = float(exponent[0])
    return value, (min(float(low), value), max(float(high), value)), float(criterion[0])


def _best_power(exponents: Floats, n: Floats, weights: Floats, target: Floats) -> tuple[Floats, Floats, Floats]:
    """For each series target * weights: exponent, AICc and prediction of the better model."""
    n_points, basis = target.shape[1], np.exp(exponents[:, None] * np.log(n / n[-1]))
    columns, series = basis / weights, np.arange(len(target))
    alone, beside = one_term(columns, target), two_terms(1 / weights, columns, target)
    best = [solution.rss.argmin(axis=0) for solution in (alone, beside)]
    criteria = [
        aicc(solution.rss[k, series], n_points, 2 + number, FLOOR)
        for number, (solution, k) in enumerate(zip((alone, beside), best, strict=True))
    ]
    use_beside = criteria[1] < criteria[0]
    k = np.where(use_beside, best[1], best[0])
    a = np.where(use_beside, beside.first[k, series], 0)
    b = np.where(use_beside, beside.second[k, series], alone.second[k, series])
    prediction = a[:, None] + b[:, None] * basis[k]
    return exponents[k], np.minimum(*criteria), prediction


def _own_class(n: Floats, y: Floats, exponent: float, free: float, best: float) -> Candidate | None:
    """The free power as an order of its own, such as n^1.58, where no candidate comes near."""
    distance, gain = OWN_CLASS
    nearest = min(abs(exponent - order.rank[0]) for order in FITTED if order.rank[0] < np.inf)
    if nearest <= distance or free > best - gain or exponent >= _EXPONENTS[-1]:
        return None
    order = power(round(exponent, 2))
    models = _models_of(order, n, y, order(n / n[-1])[None], np.zeros(1), extra=True)
    return min(models, key=lambda model: model.aicc)
