"""The contract of attention as a suite that any implementation can be put to: this library's, a peer's, your own.

>>> from subquad import Causal, attention
>>> from subquad.testing import check_attention
>>> report = check_attention(attention, patterns=[Causal()], dtypes=["float32"], only=["alignment", "lse"], size=40)
>>> report.passed, report.cases
(True, 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from subquad import lazy

if TYPE_CHECKING:
    from subquad.testing.frames import Frame
    from subquad.testing.report import Failure, Outcome, Report
    from subquad.testing.suite import check_attention, checks

__all__ = ["Failure", "Frame", "Outcome", "Report", "check_attention", "checks"]

_WHERE = {
    "Failure": "report",
    "Frame": "frames",
    "Outcome": "report",
    "Report": "report",
    "check_attention": "suite",
    "checks": "suite",
}

__getattr__, __dir__ = lazy.names(__name__, _WHERE)
