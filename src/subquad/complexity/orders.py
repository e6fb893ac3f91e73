"""Orders of growth: values that compare by how fast they grow, and the fourteen of the standard table."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SUPERSCRIPTS = str.maketrans("0123456789c", "⁰¹²³⁴⁵⁶⁷⁸⁹ᶜ")
_PLAIN = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹ᶜ·", "0123456789c ")


@total_ordering
@dataclass(frozen=True, eq=False)
class Order:
    """An order of growth in n.

    Parameters
    ----------
    notation : str
        As it is written, e.g. ``"O(n log n)"``; also what ``str`` gives.
    rank : tuple of float
        What orders compare by: exponents of n and of log n, then what grows more slowly than any log. Beyond every
        power of n the first is infinite.
    name : str, optional
        The family, e.g. ``"linearithmic"``.
    meaning, example, source : str, optional
        In one sentence each: what it says, where a language model has it, and who says so.

    Notes
    -----
    Calling an order gives its growth at n, as float64: ``n``, ``n log2 n``, ...; families with a free constant take the
    one that `meaning` names. Two orders are equal where notation and rank are; a string equals an order of that
    notation.

    Examples
    --------
    >>> str(max(LINEAR, QUADRATIC))
    'O(n²)'
    >>> LINEAR == "O(n)"
    True
    >>> float(LINEARITHMIC(8))
    24.0
    """

    notation: str
    rank: tuple[float, ...]
    name: str = ""
    meaning: str = ""
    example: str = ""
    source: str = ""

    def __str__(self) -> str:
        return self.notation

    def __repr__(self) -> str:
        return f"Order({self.notation!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self.notation == other
        return isinstance(other, Order) and (self.notation, self.rank) == (other.notation, other.rank)

    def __hash__(self) -> int:
        return hash(self.notation)

    def __lt__(self, other: Order) -> bool:
        return (self.rank, self.notation) < (other.rank, other.notation)

    def __call__(self, n: npt.ArrayLike) -> Floats:
        """The growth at n (array-like, above 0), float64; infinite where it is too large for one."""
        n = _above_0(n)
        with np.errstate(over="ignore"):
            if self.name in _GROWTH:
                return np.asarray(_GROWTH[self.name](n))
            if self.name in _LOG_GROWTH:
                return np.asarray(np.exp(_LOG_GROWTH[self.name](n)))
            exponent, logs = (*self.rank, 0.0)[:2]
            return np.asarray(n**exponent * (np.log2(n) ** logs if logs else 1.0))

    def log_growth(self, n: npt.ArrayLike) -> Floats:
        """Natural log of the growth: finite where the growth itself is too large for a float64."""
        if self.name in _LOG_GROWTH:
            return np.asarray(_LOG_GROWTH[self.name](_above_0(n)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log(np.maximum(self(n), 0.0)))


def _above_0(n: npt.ArrayLike) -> Floats:
    numbers = np.asarray(n, np.float64)
    if not (numbers > 0).all():
        raise ValueError(f"n must be above 0; got {n!r}")
    return numbers


def inverse_ackermann(n: npt.ArrayLike) -> Floats:
    """Smallest k with A(k, k) >= n: 0, 1, 2, 3 up to n = 1, 3, 7, 61, and 4 for every n beyond that fits a machine."""
    return np.searchsorted([1, 3, 7, 61], np.asarray(n, np.float64)).astype(np.float64)


def log_star(n: npt.ArrayLike) -> Floats:
    """How often log2 must be taken until the result is at most 1: 5 for everything from 65,537 to 2^65536."""
    return np.searchsorted([1, 2, 4, 16, 65536], np.asarray(n, np.float64)).astype(np.float64)


def _log_factorial(n: Floats) -> Floats:
    return np.reshape([math.lgamma(x + 1) for x in n.ravel()], n.shape)


def _log_l_notation(n: Floats) -> Floats:
    log_n = np.maximum(np.log(n), 1.0)
    return np.asarray(np.sqrt(log_n * np.log(log_n)))


_GROWTH: dict[str, Any] = {
    "inverse Ackermann": inverse_ackermann,
    "double logarithmic": lambda n: np.log2(np.maximum(np.log2(n), 1.0)),
    "n log-star n": lambda n: n * log_star(n),
}
#: Too large for a float64 before n is large.
_LOG_GROWTH: dict[str, Any] = {
    "L-notation": _log_l_notation,
    "exponential": lambda n: n * math.log(2),
    "factorial": _log_factorial,
}

CONSTANT = Order(
    "O(1)",
    (0, 0),
    "constant",
    "as long for every n",
    "Reading a cached key and value by its position, or a token's embedding by its number: one address is computed.",
    "Pope et al., Efficiently Scaling Transformer Inference (2022), section 2",
)
INVERSE_ACKERMANN = Order(
    "O(α(n))",
    (0, 0, 1),
    "inverse Ackermann",
    "at most 4 for every n that fits a machine",
    "One step of joining near-duplicate documents of a training corpus into clusters, by union-find.",
    "Tarjan, Efficiency of a Good But Not Linear Set Union Algorithm (1975); "
    "Lee et al., Deduplicating Training Data Makes Language Models Better (2021), section 4.2",
)
DOUBLE_LOGARITHMIC = Order(
    "O(log log n)",
    (0, 0, 2),
    "double logarithmic",
    "one step more where n is squared",
    "Finding the document that holds a token of a packed corpus by interpolation search in its n sorted offsets: "
    "expected, for offsets spread evenly.",
    "Perl, Itai, Avni, Interpolation Search - A log log N Search (1978)",
)
LOGARITHMIC = Order(
    "O(log n)",
    (0, 1),
    "logarithmic",
    "one step more where n doubles",
    "The probability of one word of a vocabulary of n by a hierarchical softmax: a path in a binary tree.",
    "Morin, Bengio, Hierarchical Probabilistic Neural Network Language Model (2005)",
)
POLYLOGARITHMIC = Order(
    "O((log n)ᶜ)",
    (0, 2),
    "polylogarithmic",
    "a power of the logarithm (drawn: c = 2)",
    "Keys that a token attends in all layers of a LogSparse Transformer: O(log n) in each of O(log n) layers.",
    "Li et al., Enhancing the Locality and Breaking the Memory Bottleneck of Transformer (2019), section 4.2",
)
FRACTIONAL_POWER = Order(
    "O(nᶜ), c < 1",
    (0.5, 0),
    "fractional power",
    "a root of n (drawn: c = 1/2)",
    "Keys that a token attends in a Sparse Transformer whose stride is near the root of n.",
    "Child et al., Generating Long Sequences with Sparse Transformers (2019), section 4",
)
LINEAR = Order(
    "O(n)",
    (1, 0),
    "linear",
    "twice as long where n doubles",
    "Logits over a vocabulary of n words; one new token against n cached keys; attention in a window over n tokens.",
    "Beltagy, Peters, Cohan, Longformer (2020), section 3.1",
)
N_LOG_STAR = Order(
    "O(n log* n)",
    (1, 0, 1),
    "n log-star n",
    "at most 5 n for every n that fits a machine",
    "Joining n near-duplicate documents into clusters by union-find, as it was first bounded (α is the tighter bound).",
    "Hopcroft, Ullman, Set Merging Algorithms (1973)",
)
LINEARITHMIC = Order(
    "O(n log n)",
    (1, 1),
    "linearithmic",
    "a little more than twice as long where n doubles",
    "Sorting n logits for top-k or top-p sampling; attention among keys that hash alike, which are sorted.",
    "Holtzman et al., The Curious Case of Neural Text Degeneration (2019), section 3.1; "
    "Kitaev, Kaiser, Levskaya, Reformer (2020), section 2",
)
QUADRATIC = Order(
    "O(n²)",
    (2, 0),
    "quadratic",
    "four times as long where n doubles",
    "Dense attention: a score for every pair of n tokens.",
    "Vaswani et al., Attention Is All You Need (2017), table 1",
)
POLYNOMIAL = Order(
    "O(nᶜ)",
    (3, 0),
    "polynomial",
    "2ᶜ times as long where n doubles (drawn: c = 3)",
    "Attention over triples of n tokens instead of pairs, O(n³); parsing n tokens by a context-free grammar, O(n³).",
    "Clift et al., Logic and the 2-Simplicial Transformer (2019); "
    "Younger, Recognition and Parsing of Context-Free Languages in Time n³ (1967)",
)
L_NOTATION = Order(
    "Lₙ[α, c]",
    (math.inf, 0),
    "L-notation",
    "exp(c (ln n)^α (ln ln n)^(1-α)): in the digits of n between polynomial and exponential (drawn: α = 1/2, c = 1)",
    "None inside a model is known. Factoring the RSA modulus n of the certificate under which weights are served.",
    "Buhler, Lenstra, Pomerance, Factoring Integers with the Number Field Sieve (1993)",
)
EXPONENTIAL = Order(
    "O(cⁿ)",
    (math.inf, 1),
    "exponential",
    "c times as long for one more n (drawn: c = 2)",
    "Searching all continuations of n tokens for the likeliest, Vⁿ of them; beam search of width k looks at O(n k V).",
    "Meister, Vieira, Cotterell, Best-First Beam Search (2020), section 2",
)
FACTORIAL = Order(
    "O(n!)",
    (math.inf, 2),
    "factorial",
    "n times as long for the n-th",
    "Trying every order of n examples in a prompt; every order in which n tokens can be predicted.",
    "Lu et al., Fantastically Ordered Prompts (2022), section 2; Yang et al., XLNet (2019), section 2.2",
)

#: The fourteen orders of the standard table, in its order. That is the order of growth, but for L-notation: the table
#: ranks it, and so does its `rank`, by the digits of n; in n itself it grows more slowly than any power.
ORDERS: tuple[Order, ...] = (
    CONSTANT,
    INVERSE_ACKERMANN,
    DOUBLE_LOGARITHMIC,
    LOGARITHMIC,
    POLYLOGARITHMIC,
    FRACTIONAL_POWER,
    LINEAR,
    N_LOG_STAR,
    LINEARITHMIC,
    QUADRATIC,
    POLYNOMIAL,
    L_NOTATION,
    EXPONENTIAL,
    FACTORIAL,
)


def power(exponent: float) -> Order:
    """The order of n to an exponent of at least 0: one of `ORDERS` where there is one.

    Examples
    --------
    >>> str(power(1.5)), power(2) is QUADRATIC
    ('O(n^1.5)', True)
    """
    if not 0 <= exponent < math.inf:
        raise ValueError(f"exponent must be finite and at least 0; got {exponent!r}")
    for order in (CONSTANT, LINEAR, QUADRATIC):
        if order.rank[0] == exponent:
            return order
    family = FRACTIONAL_POWER if exponent < 1 else POLYNOMIAL
    whole = float(exponent).is_integer()
    text = f"n{int(exponent)}".translate(_SUPERSCRIPTS) if whole else f"n^{exponent:g}"
    return Order(f"O({text})", (float(exponent), 0.0), family.name, f"n to the power {exponent:g}")


def parse_order(text: str | Order) -> Order:
    """The order that a text such as ``"O(n log n)"`` names; powers as ``n^1.5``, ``n**2``, ``n²`` or ``sqrt(n)``.

    Raises
    ------
    ValueError
        The text names no order that can be measured.

    Examples
    --------
    >>> parse_order("O(n^2)") is QUADRATIC, str(parse_order("n sqrt(n)"))
    (True, 'O(n^1.5)')
    """
    if isinstance(text, Order):
        return text
    if not isinstance(text, str):
        raise TypeError(f'order must be an Order or a string such as "O(n log n)"; got {text!r}')
    for order in ORDERS:
        if text.strip() == order.notation:
            return order
    plain = re.sub(r"(?<=[n)])(?=[⁰¹²³⁴⁵⁶⁷⁸⁹])", "^", text).translate(_PLAIN).lower().replace("**", "^")
    plain = re.sub(r"^o\((.*)\)$", r"\1", plain.strip()).replace("log*", "logstar")
    plain = re.sub(r"√\(?n\)?|sqrt\(?n\)?", "n^0.5", re.sub(r"[\s*]+", "", plain)).replace("log(n)", "logn")
    for names, order in _NAMES.items():
        if plain in names:
            return order
    found = re.fullmatch(r"(n?)n\^\(?([0-9]+(?:\.[0-9]*)?)\)?", plain)
    if not found:
        known = ", ".join(str(order) for order in ORDERS if order not in (POLYLOGARITHMIC, L_NOTATION))
        raise ValueError(f"order: {text!r} is none; write one such as O(n^1.5), or one of {known}")
    return power(float(found[2]) + len(found[1]))


_NAMES: dict[tuple[str, ...], Order] = {
    ("1",): CONSTANT,
    ("α(n)", "alpha(n)"): INVERSE_ACKERMANN,
    ("loglogn", "loglog(n)"): DOUBLE_LOGARITHMIC,
    ("logn",): LOGARITHMIC,
    ("(logn)^2", "log^2n", "(logn)^c"): POLYLOGARITHMIC,
    ("n",): LINEAR,
    ("nlogstarn",): N_LOG_STAR,
    ("nlogn",): LINEARITHMIC,
    ("n^c",): POLYNOMIAL,
    ("2^n", "c^n", "exp(n)"): EXPONENTIAL,
    ("n!",): FACTORIAL,
}
