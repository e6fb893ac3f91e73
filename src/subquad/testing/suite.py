"""Putting an implementation to the contract."""

from __future__ import annotations

import importlib.util
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from subquad import checks as rules
from subquad.patterns.base import Pattern
from subquad.testing import backward as _backward
from subquad.testing import bits, buffers, relations, values
from subquad.testing.cases import default_patterns
from subquad.testing.report import Failure, Outcome, Report
from subquad.testing.trial import OPTIONS, REGISTRY, Case, Check, Claims, Mismatch, Trial

_MODULES = values, bits, relations, buffers, _backward  # importing them filled the registry
_GROUPS = ("values", "empty", "isolation", "bits", "relations", "arrays", "errors", "gradients")
_CHECKS = {check.name: check for group in _GROUPS for check in REGISTRY.values() if check.group == group}
_LEAST, _MOST = 24, 4096
_DTYPES = ("float32", "float64", "float16", "bfloat16")


def checks() -> dict[str, str]:
    """What `check_attention` looks at: the name of every check, and the promise that it holds an implementation to.

    Examples
    --------
    >>> from subquad.testing import checks
    >>> checks()["rows-without-keys"]
    'A row with no allowed key is 0.'
    """
    return {name: check.sentence for name, check in _CHECKS.items()}


def check_attention(
    fn: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    patterns: Sequence[Pattern] | None = None,
    dtypes: Sequence[npt.DTypeLike] | None = None,
    options: Iterable[str] = OPTIONS,
    only: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
    case: int | None = None,
    size: int = 110,
    seed: int = 0,
    raises: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Put an implementation of attention to the contract: values, empty rows, isolation, bits, relations, errors.

    Two oracles: dense float64 attention over the mask ``pattern.contains`` gives, and, where ``onnx`` is installed,
    the NumPy reference of the ONNX operator Attention. An implementation that does not keep all of the contract says
    which part it claims; what it does not claim is listed as not run.

    Parameters
    ----------
    fn : function
        ``fn(query, key, value, pattern, *, scale=None, return_lse=False, out=None, num_threads=None)``, as
        `subquad.attention`. It is never given an option that is not claimed.
    backward : function, optional
        ``backward(grad_out, query, key, value, out, lse, pattern, *, scale=None, num_threads=None)``, as
        `subquad.attention_backward`. Without it gradients are not looked at.
    patterns : sequence of Pattern, optional
        What the implementation can compute; by default every family and expressions of them. Patterns that are not
        legal at a size are left out at that size.
    dtypes : sequence of dtype, optional
        By default float32, float64, float16 and, where ``ml_dtypes`` is installed, bfloat16. Checks that need one alone
        take the first.
    options : iterable of str, optional
        Those of scale, return_lse, out and num_threads that `fn` takes; all by default.
    only, skip : str or iterable of str, optional
        Names of checks or of groups of them; `checks` lists them.
    case : int, optional
        Run the case of this number alone; for the one check that `only` names.
    size : int, optional
        Keys, and most often queries, of a case; from 24 to 4096.
    seed : int, optional
        Of all numbers. A case draws the same whichever other cases run.
    raises : bool, optional
        Raise AssertionError with the report's table if anything fails.
    progress : function (done, total, name), optional
        Called before each check.

    Returns
    -------
    Report
        True if all that ran held; ``print(report)`` shows a table, ``report.failures`` what to look at.

    Raises
    ------
    TypeError, ValueError
        For arguments of this function that do not fit. What `fn` raises is a failure of a case.
    AssertionError
        If `raises`, and something failed.

    Notes
    -----
    Cases are of O(size²): the whole contract at the default size is some 2,000 cases in a few seconds.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import Causal, Dense
    >>> from subquad.testing import check_attention
    >>> def top_left(query, key, value, pattern):
    ...     scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    ...     scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    ...     weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    ...     return weights / weights.sum(axis=-1, keepdims=True) @ value
    >>> report = check_attention(top_left, patterns=[Causal()], dtypes=["float64"], options=[], only="values", size=24)
    >>> report.failed  # heads are not grouped either
    ('alignment', 'grouped-heads')
    """
    claims = _claims(fn, backward, patterns, dtypes, options, size)
    chosen = [found for found in _CHECKS.values() if _is_chosen(found, _names(only, "only"), _names(skip, "skip"))]
    seed = rules.integer(seed, "seed", 0)
    if case is not None:
        rules.integer(case, "case", 0)
        if len(chosen) != 1:
            raise ValueError(f"case needs one check to be a case of: only=<its name>; got {len(chosen)} checks")
    outcomes = []
    for done, found in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen), found.name)
        outcomes.append(_outcome(found, fn, backward, claims, seed, case))
    report = Report(tuple(outcomes), seed, claims.size)
    if raises:
        report.raise_for_failures()
    return report


def _claims(fn: Any, backward: Any, patterns: Any, dtypes: Any, options: Any, size: Any) -> Claims:
    for name, given in (("fn", fn), ("backward", backward)):
        if not callable(given) and (name == "fn" or given is not None):
            raise TypeError(f"{name} must be a function with the call shape of subquad's; got {given!r}")
    size = rules.integer(size, "size", _LEAST)
    if size > _MOST:
        raise ValueError(f"size must be at most {_MOST}, since the oracle is dense; got {size}")
    taken = {options} if isinstance(options, str) else set(options)
    if not taken <= set(OPTIONS):
        raise ValueError(f"options must be among {', '.join(OPTIONS)}; got {', '.join(sorted(taken - set(OPTIONS)))}")
    given = default_patterns(size) if patterns is None else tuple(patterns)
    for pattern in given:
        if not isinstance(pattern, Pattern):
            raise TypeError(f"patterns must hold subquad patterns alone; got {pattern!r}")
    known = [name for name in _DTYPES if name != "bfloat16" or importlib.util.find_spec("ml_dtypes")]
    found = tuple(_dtype(x) for x in (known if dtypes is None else dtypes))
    if not given or not found:
        raise ValueError("patterns and dtypes must each hold one at least; got none")
    extra = {"backward"} if backward is not None else set()
    return Claims(given, found, frozenset(taken | extra), size, patterns is None)


def _dtype(given: Any) -> np.dtype[Any]:
    if given == "bfloat16":
        import ml_dtypes

        given = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(given)
    if found.name not in _DTYPES:
        raise ValueError(f"dtypes must be among {', '.join(_DTYPES)}; got {found}")
    return found


def _names(given: Any, what: str) -> set[str]:
    names = {given} if isinstance(given, str) else set(given)
    known = {*_CHECKS, *_GROUPS}
    if not names <= known:
        raise ValueError(f"{what} must name checks or groups, {', '.join(sorted(known))}; got {sorted(names - known)}")
    return names


def _is_chosen(check: Check, only: set[str], skip: set[str]) -> bool:
    own = {check.name, check.group}
    return bool(own & only or not only) and not own & skip


def _outcome(check: Check, fn: Any, backward: Any, claims: Claims, seed: int, wanted: int | None) -> Outcome:
    start = time.perf_counter()
    why = check.missing(claims)
    cases = [] if why else list(enumerate(check.cases(claims)))
    if not why and not cases:
        why = "nothing that is claimed has such a case"
    if wanted is not None and not why:
        if wanted >= len(cases):
            raise ValueError(f"case must be below {len(cases)}, the number of cases of {check.name}; got {wanted}")
        cases = [cases[wanted]]
    failures = []
    for number, case in cases:
        trial = Trial(fn, backward, [seed, zlib.crc32(check.name.encode()), number])
        try:
            check.run(trial, **case)
        except Exception as error:  # whatever an implementation raises is its failure
            failures.append(_failure(check, number, case, error, trial, claims, seed))
    spent = time.perf_counter() - start
    return Outcome(check.name, check.group, check.sentence, len(cases), tuple(failures), why, spent)


def _failure(
    check: Check, number: int, case: Case, error: Exception, trial: Trial, claims: Claims, seed: int
) -> Failure:
    text = ", ".join(f"{name}={value}" for name, value in case.items())
    repeat = f"check_attention(..., only={check.name!r}, case={number}, size={claims.size}, seed={seed})"
    ours = isinstance(error, AssertionError)
    message = str(error) if ours else f"it raised {type(error).__name__}: {error}"
    of = (error.difference, error.allowed) if isinstance(error, Mismatch) else (None, None)
    return Failure(check.name, check.sentence, text, message, *of, repeat, trial.last)
