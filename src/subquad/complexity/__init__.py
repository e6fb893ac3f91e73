"""Time and memory as they grow with n: the orders of growth, predicted, measured, fitted and enforced.

>>> from subquad.complexity import ORDERS
>>> " ".join(str(order) for order in ORDERS[:4])
'O(1) O(α(n)) O(log log n) O(log n)'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from subquad import lazy
from subquad.complexity.orders import ORDERS, Order, parse_order, power

if TYPE_CHECKING:
    from subquad.complexity.chart import chart
    from subquad.complexity.costs import Cost, cost
    from subquad.complexity.fitting import Candidate, Fit, fit
    from subquad.complexity.measuring import Measurement, assert_scales, geometric, measure
    from subquad.complexity.memory import extra_memory
    from subquad.complexity.several import SeveralFit
    from subquad.complexity.transformer import TransformerCost, transformer_cost

__all__ = [
    "ORDERS",
    "Candidate",
    "Cost",
    "Fit",
    "Measurement",
    "Order",
    "SeveralFit",
    "TransformerCost",
    "assert_scales",
    "chart",
    "cost",
    "extra_memory",
    "fit",
    "geometric",
    "measure",
    "parse_order",
    "power",
    "transformer_cost",
]

# Patterns need orders, so this package is imported with subquad; everything else waits until somebody asks for it.
_WHERE = {
    "Candidate": "fitting",
    "Cost": "costs",
    "Fit": "fitting",
    "Measurement": "measuring",
    "SeveralFit": "several",
    "TransformerCost": "transformer",
    "assert_scales": "measuring",
    "chart": "chart",
    "cost": "costs",
    "extra_memory": "memory",
    "fit": "fitting",
    "geometric": "measuring",
    "measure": "measuring",
    "transformer_cost": "transformer",
}

__getattr__, __dir__ = lazy.names(__name__, _WHERE)
