"""What a suite of checks has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Failure:
    """One case in which a check failed.

    Attributes
    ----------
    check : str
        The name of the check.
    sentence : str
        What the check holds an implementation to.
    case : str
        Pattern, sizes and what else the case varies.
    message : str
        What was found instead.
    difference, allowed : float or None
        The largest absolute difference, and what rounding explains; None where it is not a matter of numbers.
    repeat : str
        The call of `check_attention` that runs this case alone.
    arguments : tuple and dict
        Positional and keyword arguments of the last call of the implementation in this case.
    """

    check: str
    sentence: str
    case: str
    message: str
    difference: float | None
    allowed: float | None
    repeat: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = field(repr=False)

    def __str__(self) -> str:
        lines = [f"{self.check}: {self.sentence}", f"    case    {self.case}", f"    found   {self.message}"]
        if self.difference is not None:
            allowed = "" if self.allowed is None else f", {self.allowed:.3g} allowed"
            lines.append(f"    off by  {self.difference:.3g}{allowed}")
        return "\n".join([*lines, f"    repeat  {self.repeat}"])


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    Attributes
    ----------
    name, group, sentence : str
    cases : int
        How many were run.
    failures : tuple of Failure
    skipped : str
        Why it was not run; empty where it was.
    seconds : float
    """

    name: str
    group: str
    sentence: str
    cases: int
    failures: tuple[Failure, ...]
    skipped: str
    seconds: float

    @property
    def word(self) -> str:
        """passed, FAILED or skipped."""
        return "FAILED" if self.failures else "skipped" if self.skipped else "passed"


@dataclass(frozen=True, repr=False)
class Report:
    """What `check_attention` has found; true where nothing failed, and a table as text.

    Attributes
    ----------
    outcomes : tuple of Outcome
        One for each check.
    seed, size : int
        As they were asked for.
    """

    outcomes: tuple[Outcome, ...]
    seed: int
    size: int

    @property
    def passed(self) -> bool:
        """Whether something ran, and nothing failed."""
        return self.cases > 0 and not self.failures

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Of all checks."""
        return tuple(failure for outcome in self.outcomes for failure in outcome.failures)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(outcome.name for outcome in self.outcomes if outcome.failures)

    @property
    def cases(self) -> int:
        """How many were run in all."""
        return sum(outcome.cases for outcome in self.outcomes)

    def raise_for_failures(self) -> None:
        """Raise AssertionError with this table if a case failed, or if there was none to run."""
        if not self.passed:
            raise AssertionError(str(self))

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return str(self)  # what `assert check_attention(fn)` shows

    def __str__(self) -> str:
        width = max((len(outcome.name) for outcome in self.outcomes), default=0)
        lines = [_line(outcome, width) for outcome in self.outcomes]
        skipped = sum(bool(outcome.skipped) for outcome in self.outcomes)
        ran = len(self.outcomes) - skipped
        lines.append(f"{self.cases:,} cases of {ran} checks, {len(self.failures)} failed; {skipped} checks not run")
        for outcome in self.outcomes:  # the first of each check is what one reads
            lines += ["", str(outcome.failures[0])] if outcome.failures else []
            if len(outcome.failures) > 1:
                lines.append(f"    and in {len(outcome.failures) - 1} more of {outcome.cases} cases")
        return "\n".join(lines)


def _line(outcome: Outcome, width: int) -> str:
    said = f"({outcome.skipped})" if outcome.skipped else outcome.sentence
    cases = "" if outcome.skipped else f"{outcome.cases:>5}"
    return f"{outcome.name:<{width}}  {outcome.word:<7} {cases:>5}  {said}"
